"""Train the guide model and write its folder: python packaging/guide/train.py --out mlxd/guide"""

from __future__ import annotations

import argparse
import math
import random
import time
from collections.abc import Iterator
from pathlib import Path

import torch
from chats import Chat, Mixture, Renderer, held_out_questions, trained_questions
from export import export, restore
from facts import Fact, load_facts, load_offtopic
from model import Guide, Shape
from tokenizer import EOS, SPECIAL, train_tokenizer
from tokenizers import Tokenizer
from torch import Tensor
from torch.nn import functional

Batch = tuple[Tensor, Tensor, Tensor]
POOL = 768


class Encoder:
    """Chats to token ids; some prompts are split at random (BPE dropout), as typing errors are."""

    def __init__(self, tokenizer: Tokenizer, seed: int) -> None:
        self.tokenizer = tokenizer
        self._loose = Tokenizer.from_str(tokenizer.to_str())
        self._loose.model.dropout = 0.08
        self._rng = random.Random(seed)
        self._end = tokenizer.token_to_id(EOS)

    def __call__(self, chat: Chat, exact: bool = False) -> tuple[list[int], int]:
        """The ids and the length of the prompt in them."""
        loose = not exact and self._rng.random() < 0.3
        prompt = (self._loose if loose else self.tokenizer).encode(chat.prompt).ids
        return [*prompt, *self.tokenizer.encode(chat.answer).ids, self._end], len(prompt)


def batches(mixture: Mixture, encoder: Encoder, budget: int, rng: random.Random) -> Iterator[Batch]:
    """Endless batches of at most `budget` padded tokens, of chats of like length."""
    while True:
        pool = sorted((encoder(mixture.draw()) for _ in range(POOL)), key=lambda pair: len(pair[0]))
        groups: list[list[tuple[list[int], int]]] = [[]]
        for pair in pool:
            if (len(groups[-1]) + 1) * len(pair[0]) > budget and groups[-1]:
                groups.append([])
            groups[-1].append(pair)
        rng.shuffle(groups)
        yield from map(collate, groups)


def copying(vocabulary: int, budget: int, rng: random.Random) -> Batch:
    """Random tokens, then the same again: the plain form of what tool calls and JSON need."""
    length, before = rng.choice((5, 8, 12, 20)), rng.randrange(6)
    rows = budget // (2 * length + before)
    head = torch.randint(len(SPECIAL), vocabulary, (rows, before + 1))
    said = torch.randint(len(SPECIAL), vocabulary, (rows, length))
    tokens = torch.cat((head, said, said), dim=1)
    answer = torch.zeros_like(tokens, dtype=torch.bool)
    answer[:, before + length + 2 :] = True
    return tokens[:, :-1], tokens[:, 1:], answer[:, 1:]


def collate(group: list[tuple[list[int], int]]) -> Batch:
    """Inputs, targets, and the mask of the positions whose target belongs to the answer."""
    width = max(len(ids) for ids, _ in group)
    tokens = torch.zeros((len(group), width), dtype=torch.long)
    answer = torch.zeros((len(group), width), dtype=torch.bool)
    for row, (ids, prompt) in enumerate(group):
        tokens[row, : len(ids)] = torch.tensor(ids)
        answer[row, prompt : len(ids)] = True
    return tokens[:, :-1], tokens[:, 1:], answer[:, 1:]


@torch.no_grad()
def accuracy(model: Guide, encoder: Encoder, chats: list[Chat]) -> float:
    """The share of chats whose whole answer, end included, is the model's greedy choice."""
    model.eval()
    right = 0
    pairs = sorted((encoder(chat, exact=True) for chat in chats), key=lambda pair: len(pair[0]))
    for at in range(0, len(pairs), 64):
        inputs, targets, mask = collate(pairs[at : at + 64])
        choice = model.logits(model(inputs)).argmax(-1)
        right += int(((choice == targets) | ~mask).all(dim=1).sum())
    model.train()
    return right / max(1, len(chats))


def question_chats(facts: list[Fact], held_out: bool) -> list[Chat]:
    """The plain questions of facts as chats."""
    renderer = Renderer()
    questions = held_out_questions if held_out else trained_questions
    return [
        Chat(renderer.prompt([{"role": "user", "content": question}]), fact.answer)
        for fact in facts
        for question in questions(fact)
    ]


def report(model: Guide, encoder: Encoder) -> str:
    """Exact-match figures of trained and held-out phrasings, by language."""
    parts = []
    for language in ("en", "ru"):
        facts = [fact for fact in load_facts() if fact.language == language]
        refusals = [fact for fact in load_offtopic() if fact.language == language]
        trained = accuracy(model, encoder, question_chats(facts, held_out=False))
        unseen = accuracy(model, encoder, question_chats(facts, held_out=True))
        refused = accuracy(model, encoder, question_chats(refusals, held_out=True))
        parts.append(f"{language} {trained:.1%} held-out {unseen:.1%} refused {refused:.0%}")
    return f"{'; '.join(parts)}; copying {copied(model):.1%}"


@torch.no_grad()
def copied(model: Guide) -> float:
    """The share of tokens of random sequences which the model copies."""
    inputs, targets, mask = copying(model.shape.vocab, 2000, random.Random(1))
    choice = model.logits(model(inputs)).argmax(-1)
    return float((choice == targets)[mask].float().mean())


def make_optimizer(model: Guide, rate: float) -> torch.optim.Optimizer:
    """AdamW, without decay for norms and embedding."""
    matrices = [p for n, p in model.named_parameters() if p.dim() == 2 and "embed" not in n]
    others = [p for n, p in model.named_parameters() if p.dim() != 2 or "embed" in n]
    groups = [{"params": matrices, "weight_decay": 0.1}, {"params": others, "weight_decay": 0.0}]
    return torch.optim.AdamW(groups, lr=rate, betas=(0.9, 0.98))


def progress(started: float, minutes: float, step: int, steps: int) -> float:
    """How much of the training is done, 0 to 1, by the clock or by steps."""
    if steps:
        return step / steps
    return (time.monotonic() - started) / (60 * minutes) if minutes else 1.0


def train(model: Guide, encoder: Encoder, arguments: argparse.Namespace) -> None:
    """The loop: warm-up, then a cosine down to a twentieth; every report also writes the model."""
    optimizer = make_optimizer(model, arguments.rate)
    seed, chance = arguments.seed, random.Random(arguments.seed)
    stream = batches(Mixture(seed), encoder, arguments.budget, random.Random(seed))
    started, step, tokens, average = time.monotonic(), 0, 0, 0.0
    while (done := progress(started, arguments.minutes, step, arguments.steps)) < 1:
        cosine = 0.525 + 0.475 * math.cos(math.pi * done)
        rate = arguments.rate * min(1.0, (step + 1) / 150) * cosine
        for group in optimizer.param_groups:
            group["lr"] = rate
        if chance.random() < (0.5 if done < arguments.copying else 0.06):
            inputs, targets, mask = copying(model.shape.vocab, arguments.budget * 2 // 3, chance)
        else:
            inputs, targets, mask = next(stream)
        logits = model.logits(model(inputs)[mask])
        loss = functional.cross_entropy(logits, targets[mask])
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        step, tokens = step + 1, tokens + inputs.numel()
        average = loss.item() if step == 1 else 0.98 * average + 0.02 * loss.item()
        if step % 100 == 0:
            speed = tokens / (time.monotonic() - started)
            print(f"step {step} {done:.0%} loss {average:.4f} {speed:.0f} tokens/s", flush=True)
        if step % arguments.report == 0:
            print(f"  {report(model, encoder)}", flush=True)
            export(model, encoder.tokenizer, arguments.out)
    print(f"  end, step {step}: {report(model, encoder)}", flush=True)


def make_tokenizer(arguments: argparse.Namespace) -> Tokenizer:
    """A new tokenizer, or that of the folder whose training goes on (of several, they share it)."""
    if arguments.resume:
        return Tokenizer.from_file(str(arguments.resume[0] / "tokenizer.json"))
    return train_tokenizer(arguments.vocab, examples=20000, seed=arguments.seed)


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, required=True, help="the model folder to write")
    parser.add_argument("--minutes", type=float, default=50, help="training time, by the clock")
    parser.add_argument("--steps", type=int, default=0, help="a number of steps, in place of it")
    parser.add_argument(
        "--resume", type=Path, nargs="+", help="go on with the model of this folder, or their mean"
    )
    parser.add_argument(
        "--copying", type=float, default=0.2, help="share of time with much copying"
    )
    parser.add_argument("--rate", type=float, default=2.5e-3)
    parser.add_argument("--budget", type=int, default=2048, help="tokens in a batch")
    parser.add_argument("--dropout", type=float, default=0.0)
    parser.add_argument("--vocab", type=int, default=2048)
    parser.add_argument("--seed", type=int, default=11435)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--report", type=int, default=500, help="steps between accuracy reports")
    return parser.parse_args()


def main() -> None:
    arguments = parse_arguments()
    torch.manual_seed(arguments.seed)
    torch.set_num_threads(arguments.threads)
    tokenizer = make_tokenizer(arguments)
    model = Guide(Shape(vocab=tokenizer.get_vocab_size()), dropout=arguments.dropout)
    if arguments.resume:
        restore(model, arguments.resume)
    count = sum(parameter.numel() for parameter in model.parameters())
    print(f"{count:,} parameters, vocabulary {tokenizer.get_vocab_size()}", flush=True)
    train(model, Encoder(tokenizer, arguments.seed), arguments)
    export(model, tokenizer, arguments.out)


if __name__ == "__main__":
    main()
