#include "check/avxvnni_trap.h"

#if defined(__x86_64__)
#include <cpuid.h>
#include <signal.h>
#include <string.h>
#include <ucontext.h>
#include <unistd.h>

#include <cstdint>
#include <cstdlib>
#endif

namespace octavo::check {

#if defined(__x86_64__)
namespace {

// Where the saved state (in the standard layout of xsave) holds the upper halves of the registers.
int upper_offset() {
  unsigned a = 0, b = 0, c = 0, d = 0;
  __get_cpuid_count(0xd, 2, &a, &b, &c, &d);
  return static_cast<int>(b);
}

class Registers {
 public:
  explicit Registers(ucontext_t* context)
      : general_(context->uc_mcontext.gregs),
        state_(reinterpret_cast<uint8_t*>(context->uc_mcontext.fpregs)) {}
  int64_t& rip() { return reinterpret_cast<int64_t&>(general_[REG_RIP]); }
  int64_t general(int number) const {
    constexpr int kOrder[16] = {REG_RAX, REG_RCX, REG_RDX, REG_RBX, REG_RSP, REG_RBP,
                                REG_RSI, REG_RDI, REG_R8,  REG_R9,  REG_R10, REG_R11,
                                REG_R12, REG_R13, REG_R14, REG_R15};
    return general_[kOrder[number]];
  }
  void read(int number, uint8_t* to) const {
    memcpy(to, state_ + 160 + 16 * number, 16);
    memcpy(to + 16, state_ + upper_offset() + 16 * number, 16);
  }
  void write(int number, const uint8_t* from) {
    memcpy(state_ + 160 + 16 * number, from, 16);
    memcpy(state_ + upper_offset() + 16 * number, from + 16, 16);
  }

 private:
  greg_t* general_;
  uint8_t* state_;
};

struct Operands {
  int accumulator = 0, codes = 0, inputs = -1;  // inputs -1: memory
  const uint8_t* memory = nullptr;
  int length = 0;  // of the instruction
  bool wide = false;
};

// ModRM's memory operand: base, index, displacement; relative to the next instruction without base.
void decode_memory(const Registers& regs, const uint8_t* code, uint8_t p1, int64_t next_rip_base,
                   Operands* op) {
  const int mod = code[4] >> 6, rm = code[4] & 7;
  int length = 5;
  int64_t address = 0;
  bool relative = false, wide_displacement = mod == 2;
  if (rm == 4) {
    const int scale = code[5] >> 6, index = ((code[5] >> 3) & 7) | (p1 & 0x40 ? 0 : 8);
    const int base = code[5] & 7;
    ++length;
    if (index != 4) address += regs.general(index) << scale;
    if (base == 5 && mod == 0) {
      wide_displacement = true;
    } else {
      address += regs.general(base | (p1 & 0x20 ? 0 : 8));
    }
  } else if (rm == 5 && mod == 0) {
    relative = wide_displacement = true;
  } else {
    address += regs.general(rm | (p1 & 0x20 ? 0 : 8));
  }
  if (wide_displacement) {
    int32_t displacement;
    memcpy(&displacement, code + length, 4);
    address += displacement;
    length += 4;
  } else if (mod == 1) {
    address += static_cast<int8_t>(code[length++]);
  }
  if (relative) address += next_rip_base + length;
  op->memory = reinterpret_cast<const uint8_t*>(address);
  op->length = length;
}

// VEX.128/256.66.0F38.W0 50 /r: c4, R X B and map 2, W vvvv L and prefix 1, 50, ModRM.
bool decode(const Registers& regs, int64_t rip, Operands* op) {
  const uint8_t* code = reinterpret_cast<const uint8_t*>(rip);
  if (code[0] != 0xc4 || (code[1] & 31) != 2 || (code[2] & 0x83) != 1 || code[3] != 0x50)
    return false;
  op->wide = (code[2] & 4) != 0;
  op->codes = (~code[2] >> 3) & 15;
  op->accumulator = ((code[4] >> 3) & 7) | (code[1] & 0x80 ? 0 : 8);
  if (code[4] >> 6 == 3) {
    op->inputs = (code[4] & 7) | (code[1] & 0x20 ? 0 : 8);
    op->length = 5;
  } else {
    decode_memory(regs, code, code[1], rip, op);
  }
  return true;
}

void on_illegal(int, siginfo_t*, void* context) {
  Registers regs(static_cast<ucontext_t*>(context));
  Operands op;
  if (!decode(regs, regs.rip(), &op)) {
    static_cast<void>(!write(2, "another illegal instruction\n", 28));
    _exit(3);
  }
  uint8_t sums[32], codes[32], inputs[32] = {};
  regs.read(op.accumulator, sums);
  regs.read(op.codes, codes);
  if (op.inputs >= 0) {
    regs.read(op.inputs, inputs);
  } else {
    memcpy(inputs, op.memory, op.wide ? 32 : 16);
  }
  for (int lane = 0; lane < (op.wide ? 8 : 4); ++lane) {
    int32_t sum;
    memcpy(&sum, sums + 4 * lane, 4);
    for (int i = 0; i < 4; ++i)
      sum += codes[4 * lane + i] * static_cast<int8_t>(inputs[4 * lane + i]);
    memcpy(sums + 4 * lane, &sum, 4);
  }
  if (!op.wide) memset(sums + 16, 0, 16);
  regs.write(op.accumulator, sums);
  regs.rip() += op.length;
}

}  // namespace

bool trap_avxvnni() {
  struct sigaction action = {};
  action.sa_sigaction = on_illegal;
  action.sa_flags = SA_SIGINFO | SA_NODEFER;
  return sigaction(SIGILL, &action, nullptr) == 0;
}

#else

bool trap_avxvnni() { return false; }

#endif

}  // namespace octavo::check
