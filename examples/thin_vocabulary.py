"""What thin and trimmed vocabularies cost, language by language, in bits per byte.

python examples/thin_vocabulary.py MODEL DIRECTORY [--ranks 512] [--states 4096]

DIRECTORY keeps the models that are made. Trimmed to the English sentences alone: the others are
spelled in bytes where their tokens are gone.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from octavo.io.hub import resolve_model
from octavo.vocab.job import FactorPlan, factor_model, trim_model
from octavo.vocab.material import read_texts
from octavo.vocab.measure import TextLoss, difference, text_losses

SENTENCES = {
    "English": [
        "The baker opens her shop at six, long before the street wakes up.",
        "If it rains tomorrow, we will move the table into the kitchen.",
        "Nobody could say who had left the window open that night.",
    ],
    "German": [
        "Die Bäckerin öffnet ihren Laden um sechs, lange bevor die Straße erwacht.",
        "Wenn es morgen regnet, stellen wir den Tisch in die Küche.",
        "Niemand konnte sagen, wer in jener Nacht das Fenster offen gelassen hatte.",
    ],
    "French": [
        "La boulangère ouvre sa boutique à six heures, bien avant que la rue ne s'éveille.",
        "S'il pleut demain, nous mettrons la table dans la cuisine.",
        "Personne ne pouvait dire qui avait laissé la fenêtre ouverte cette nuit-là.",
    ],
    "Spanish": [
        "La panadera abre su tienda a las seis, mucho antes de que despierte la calle.",
        "Si mañana llueve, pondremos la mesa en la cocina.",
        "Nadie supo decir quién había dejado la ventana abierta aquella noche.",
    ],
    "Russian": [
        "Пекарь открывает свою лавку в шесть, задолго до того, как проснётся улица.",
        "Если завтра пойдёт дождь, мы поставим стол на кухню.",
        "Никто не мог сказать, кто в ту ночь оставил окно открытым.",
    ],
    "Chinese": [
        "面包师六点就开店，那时街道还没有醒来。",
        "如果明天下雨，我们就把桌子搬到厨房里。",
        "没有人知道那天晚上是谁没有关窗户。",
    ],
    "Python": [
        "def mean(values):\n    return sum(values) / len(values)\n",
        "for name in sorted(names):\n    print(name, counts[name])\n",
        "class Empty(Exception):\n    pass\n",
    ],
}


def losses(path: Path) -> tuple[TextLoss, ...]:
    return text_losses(path, list(SENTENCES.items()), 256)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("model")
    parser.add_argument("directory", type=Path)
    parser.add_argument("--ranks", type=int, nargs="*", default=[512])
    parser.add_argument("--states", type=int, default=4096)
    options = parser.parse_args()
    path = resolve_model(options.model)
    found = {"whole": losses(path)}
    trimmed = options.directory / "trimmed"
    if not trimmed.exists():
        before, after = trim_model(path, trimmed, SENTENCES["English"])
        print(f"trimmed: {after} of {before} tokens")
    found["trimmed to English"] = losses(trimmed)
    for rank in options.ranks:
        out = options.directory / f"rank-{rank}"
        if not out.exists():
            fitted, held_out = read_texts(path, "", options.states, 512)
            quality = factor_model(path, out, FactorPlan(rank), fitted, (held_out,))
            assert quality is not None
            print(f"rank {rank}: mean KL {quality.kl:.4f} on Wikipedia")
        found[f"rank {rank}"] = losses(out)
    print("| language | " + " | ".join(found) + " |")
    print("|---" * (len(found) + 1) + "|")
    for i, language in enumerate(SENTENCES):
        cells = [f"{found['whole'][i].bits_per_byte:.3f}"]
        for name in list(found)[1:]:
            gap = difference(found[name][i], found["whole"][i])
            cells.append(f"{gap.value:+.3f} ({gap.low:+.3f} to {gap.high:+.3f})")
        print(f"| {language} | " + " | ".join(cells) + " |")


if __name__ == "__main__":
    main()
