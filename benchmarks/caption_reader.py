"""Trains a small LLM that what stands before a caption can steer, on captions alone: the study's ``caption_reader``.

    python benchmarks/caption_reader.py captions.txt more.txt.gz pairs/*/train.jsonl --out weights/reader

A small LLM that has only read captions ignores what a projector puts before them: it has never seen anything there that
helped. This one has. Each caption follows some positions in embedding space that hold its own content words, as image
tokens would hold objects, but disturbed, so that directions count and not exact vectors. No picture is read.

Texts have a caption a line; of LLaVA records (``.jsonl``) the answer is read. Printed are held-out losses after a
caption's own words, after another caption's and after zeros, in nats per token: the first must be the lowest. Equal
seed, texts, torch and number of threads give equal bits. Use it with ``data.lowercase=true model.end=eos``.
"""

from __future__ import annotations

import argparse
import gzip
import json
import math
import re
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from torch import Tensor
from torch.nn.functional import cross_entropy
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

PAD, BOS, EOS = 0, 1, 2
SHORTEST, LONGEST = 4, 25
"""Positions before a caption: from a 2 x 2 to a 5 x 5 grid of image tokens."""
KEPT, BLANK = 0.85, 0.08
"""Share of content words that are kept: pictures lack some; of captions after zeros: it must write without help too."""
MIXED, SCALES, NOISE = 0.5, (0.7, 1.6), 0.5
"""Largest share that comes from other positions, scales, and the largest noise as a share of the words' length: no
projector finds exact word vectors, and image tokens see parts of what their neighbours see."""
TOKENS = 64
"""Of a caption, at most; `data.max_caption_tokens` of the study."""
FUNCTION_WORDS = re.findall(
    r"\w+",
    """a an the and or but of in on at to by for from with into onto over under up down out off as is are was were be
    been being am has have had do does did it its this that these those there here their his her him he she they them
    we you i who which what where when while than then so not no nor if each some any all both very can could will
    would s t""",
)
"""Left out before a caption: they say how it is worded and not what is seen."""


class Example(NamedTuple):
    """Token ids of a caption and its end, and of each of its content words."""

    caption: list[int]
    words: list[list[int]]


class Made(NamedTuple):
    """What training yields."""

    model: LlamaForCausalLM
    tokenizer: PreTrainedTokenizerFast
    losses: dict[str, float]
    """Held-out nats per token after ``own`` words, ``another``'s and ``zeros``."""


def read(path: Path) -> Iterator[str]:
    """The captions of a file, in lower case: capitals would double the words of a small vocabulary."""
    opened: Any = gzip.open if path.suffix == ".gz" else open
    with opened(path, "rt", encoding="utf-8") as file:
        for line in file:
            text = json.loads(line)["conversations"][1]["value"] if path.suffix == ".jsonl" else line
            if text := " ".join(text.lower().split()):
                yield text


def train_tokenizer(captions: Sequence[str], words: int) -> PreTrainedTokenizerFast:
    """Byte-level BPE: no text is unknown, and nothing is added that fedcmp does not add itself."""
    bpe = Tokenizer(models.BPE())
    bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    bpe.decoder = decoders.ByteLevel()
    names = {"pad_token": "<pad>", "bos_token": "<s>", "eos_token": "</s>"}
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    special = list(names.values())
    bpe.train_from_iterator(captions, trainers.BpeTrainer(
        vocab_size=words, special_tokens=special, initial_alphabet=alphabet, show_progress=False,
    ))  # fmt: skip
    return PreTrainedTokenizerFast(tokenizer_object=bpe, **names)


def encode(captions: Sequence[str], tokenizer: PreTrainedTokenizerFast) -> list[Example]:
    """Captions as token ids; words as inside a sentence, with the space before them."""
    content = [[w for w in re.findall(r"[^\W_]+", text) if w not in FUNCTION_WORDS] for text in captions]
    ids = {word: tokenizer.encode(f" {word}") for word in sorted({word for words in content for word in words})}
    whole = tokenizer(list(captions), truncation=True, max_length=TOKENS - 1)["input_ids"]
    return [
        Example([*caption, EOS], [ids[word] for word in words]) for caption, words in zip(whole, content, strict=True)
    ]


def draw_before(words: list[list[int]], random: torch.Generator) -> list[int]:
    """Ids for 4 to 25 positions: most of the words, shuffled, and again from the first until all are filled."""
    places = int(torch.randint(SHORTEST, LONGEST + 1, (), generator=random))
    order = torch.randperm(len(words), generator=random).tolist()
    kept = [words[i] for i, u in zip(order, torch.rand(len(words), generator=random).tolist(), strict=True) if u < KEPT]
    tokens = [token for word in kept for token in word] or [PAD]
    return (tokens * math.ceil(places / len(tokens)))[:places]


def disturb(before: Tensor, used: Tensor, blank: Tensor, random: torch.Generator) -> Tensor:
    """Embedded words ``[B, P, D]`` as a projector might yield them; positions that are not used ``[B, P]`` are in no
    mixture, and rows that are blank ``[B]`` become zeros."""
    rows, places, width = before.shape
    weights = torch.randn(rows, places, places, generator=random).mul(2).masked_fill(~used[:, None], -math.inf)
    share = MIXED * torch.rand(rows, 1, 1, generator=random)
    mixed = before.lerp(weights.softmax(2) @ before, share)
    low, high = SCALES
    scale = low + (high - low) * torch.rand(rows, places, 1, generator=random)
    length = mixed.detach().square().mean((1, 2), keepdim=True).sqrt()
    noise = NOISE * torch.rand(rows, 1, 1, generator=random) * length
    noisy = mixed * scale + noise * torch.randn(rows, places, width, generator=random)
    return noisy.masked_fill(blank[:, None, None], 0.0)


def loss_of(
    model: LlamaForCausalLM, batch: Sequence[Example], random: torch.Generator, shown: Sequence[Example], blank: float
) -> Tensor:
    """Mean nats per token of captions and their ends, each after the words of the example in its place in ``shown``.

    A row is laid out as fedcmp does: the opening token, what stands before, the caption; padding last.
    """
    before = [draw_before(example.words, random) for example in shown]
    ids = [[BOS, *words, *example.caption] for words, example in zip(before, batch, strict=True)]
    longest = max(map(len, ids))
    tokens = torch.tensor([row + [PAD] * (longest - len(row)) for row in ids])
    place, count = torch.arange(longest), torch.tensor([len(words) for words in before])[:, None]
    used = (place >= 1) & (place <= count)
    ends = torch.tensor([len(row) for row in ids])[:, None]
    labels = tokens.masked_fill((place <= count) | (place >= ends), -100)
    embedded = model.get_input_embeddings()(tokens)
    room = slice(1, LONGEST + 1)
    blanked = torch.rand(len(batch), generator=random) < blank
    held = disturb(embedded[:, room], used[:, room], blanked, random)
    embedded = embedded.clone()
    embedded[:, room] = torch.where(used[:, room, None], held, embedded[:, room])
    hidden = model.get_decoder()(inputs_embeds=embedded[:, :-1], use_cache=False).last_hidden_state
    spoken = labels[:, 1:] != -100
    return cross_entropy(model.get_output_embeddings()(hidden[spoken]), labels[:, 1:][spoken])


@torch.no_grad()
def judge(model: LlamaForCausalLM, held_out: Sequence[Example], batch: int) -> dict[str, float]:
    """Held-out nats per token, the mean of batches; the words before captions are the same draws in every call."""
    others = [*held_out[1:], held_out[0]]
    found = {}
    for name, shown, blank in (("own", held_out, 0.0), ("another", others, 0.0), ("zeros", held_out, 1.0)):
        random = torch.Generator().manual_seed(0)
        starts = range(0, len(held_out), batch)
        losses = [loss_of(model, held_out[i : i + batch], random, shown[i : i + batch], blank) for i in starts]
        found[name] = float(torch.stack(losses).mean())
    return found


def make(captions: Sequence[str], *, steps: int, batch: int, width: int, layers: int, seed: int, words: int) -> Made:
    """Trains tokenizer and model: one in twenty distinct captions, at most 512, is held out.

    Raises:
        ValueError: fewer than 40 distinct captions.
    """
    torch.manual_seed(seed)
    random = torch.Generator().manual_seed(seed)
    distinct = sorted(set(captions))
    if len(distinct) < 40:
        raise ValueError(f"{len(distinct)} distinct captions are too few to train on and to hold some out")
    chosen = torch.randperm(len(distinct), generator=random)[: min(512, len(distinct) // 20)].tolist()
    kept_out = {distinct[i] for i in chosen}
    seen = [caption for caption in captions if caption not in kept_out]
    tokenizer = train_tokenizer(seen, words)
    training, held_out = encode(seen, tokenizer), encode([distinct[i] for i in chosen], tokenizer)
    config = LlamaConfig(
        vocab_size=words, hidden_size=width, intermediate_size=round(2.8 * width), num_hidden_layers=layers,
        num_attention_heads=5, num_key_value_heads=5, max_position_embeddings=512, tie_word_embeddings=True,
        pad_token_id=PAD, bos_token_id=BOS, eos_token_id=EOS,
    )  # fmt: skip
    model = LlamaForCausalLM(config)
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3, weight_decay=0.01)
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimizer, lambda i: min(1.0, (i + 1) / 50) * (1 + math.cos(math.pi * i / steps)) / 2
    )
    t0 = time.perf_counter()
    for step in range(steps):
        rows = [training[i] for i in torch.randint(len(training), (batch,), generator=random).tolist()]
        loss = loss_of(model, rows, random, rows, BLANK)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        schedule.step()
        if (step + 1) % 100 == 0:
            print(f"step {step + 1}: loss {loss.item():.3f}, {time.perf_counter() - t0:.0f} s", flush=True)
    return Made(model, tokenizer, judge(model, held_out, batch))


def main() -> None:
    """Trains, prints held-out losses and saves a folder that ``model.llm`` takes."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("files", type=Path, nargs="+", help="captions: .txt, .txt.gz, or .jsonl of LLaVA records")
    parser.add_argument("--out", type=Path, required=True, help="the new folder")
    parser.add_argument("--steps", type=int, default=2100, help="of --batch captions: half an hour of a core (2100)")
    parser.add_argument("--batch", type=int, default=64, help="captions of a step (64)")
    parser.add_argument("--width", type=int, default=160, help="of the model, a multiple of 10 (160)")
    parser.add_argument("--layers", type=int, default=5)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--words", type=int, default=2048, help="tokens of the vocabulary, at least 259 (2048)")
    options = vars(parser.parse_args())
    files, out = options.pop("files"), options.pop("out")
    made = make([caption for path in files for caption in read(path)], **options)
    made.model.half().save_pretrained(out)
    made.tokenizer.save_pretrained(out)
    print("held-out nats per token after " + ", ".join(f"{name} {loss:.2f}" for name, loss in made.losses.items()))


if __name__ == "__main__":
    main()
