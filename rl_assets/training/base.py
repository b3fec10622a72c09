"""The embedded base policy: a small Llama with a tokenizer for the domain, warm-started by imitating weak agents.

It is saved as an ordinary Hugging Face directory: step 0 of the model line.
"""

from __future__ import annotations

import json
import math
import os
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from rl_assets.agents import prompt
from rl_assets.agents.grammar import Grammar, load_grammar, save_grammar
from rl_assets.agents.reference import DRAWS, Seat, rule
from rl_assets.market.config import WorldConfig
from rl_assets.market.engine import Engine, Orders
from rl_assets.market.generate import generate
from rl_assets.market.snapshot import SPLITS
from rl_assets.registry.checkpoints import base_path, checkpoint_digest
from rl_assets.registry.partial import partial_directory
from rl_assets.training.forward import masked_logprobs

SPECIALS = ("<|pad|>", "<|system|>", "<|user|>", "<|assistant|>", "<|end|>", "<|unknown|>")
LAST_PIECE = "␟"
"""A plain piece with the highest id: ART takes the highest unused id as placeholder, and it must encode to itself."""
CHAT_TEMPLATE = (
    "{% for message in messages %}<|{{ message['role'] }}|>{{ message['content'] }}<|end|>{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>{% endif %}"
)
MIXTURE: dict[str, float] = {
    "news_follower": 0.3,
    "post_follower": 0.35,
    "random": 0.35,
}
"""Which agent decides a tick of a warm-start episode, with its probability."""
WARM_START_SEEDS = range(SPLITS["train"].stop - 20_000, SPLITS["train"].stop)
"""The end of the train split is kept for imitation, so that no benchmark episode replays a day that was imitated."""


@dataclass(frozen=True)
class WarmStart:
    """episodes: how many are imitated. openings: ticks at their beginning, and passes over just these, one after the
    other; passes: over the whole of them after that. batch: whole episodes per update; of shorter ones as many more.
    learning_rate: its peak.

    Openings come first: among few tokens a policy finds sooner where to look, and at a tenth of the cost.
    """

    episodes: int = 768
    openings: tuple[tuple[int, int], ...] = ((2, 3), (4, 1))
    batch: int = 4
    passes: int = 1
    learning_rate: float = 3e-3
    seed: int = 0


@dataclass(frozen=True)
class BasePolicy:
    """Step 0 on disk: its directory, the digest of its files, and how the warm start went."""

    path: Path
    digest: str
    metrics: dict[str, float]
    curve: list[dict[str, float]]


def ensure_base_policy(
    data_dir: Path,
    model_line: str,
    on_progress: Callable[[int, int], None] | None = None,
    warm_start: WarmStart | None = None,
) -> BasePolicy:
    """Build, warm-start and save step 0 unless it is there. Atomic: a killed build leaves nothing behind it.

    `on_progress` is called with the updates done and the updates in all.
    """
    target = base_path(data_dir, model_line)
    if not (target / "warm_start.json").is_file():
        target.parent.mkdir(parents=True, exist_ok=True)
        with partial_directory(target) as partial:
            _build(partial, warm_start or WarmStart(), on_progress)
            partial.chmod(0o755)
            if target.exists():
                shutil.rmtree(target)
            os.replace(partial, target)
    record = json.loads((target / "warm_start.json").read_text(encoding="utf-8"))
    return BasePolicy(target, checkpoint_digest(target), record["metrics"], record["curve"])


def build_tokenizer() -> PreTrainedTokenizerFast:
    """A unigram tokenizer whose pieces are the words of the prompt, with bytes for everything else: lossless."""
    lines = prompt.system_message(WorldConfig()).split("\n")
    pieces = list(dict.fromkeys([lines[0], *("\n" + line for line in lines[1:]), *prompt.vocabulary(), LAST_PIECE]))
    vocabulary = [(token, 0.0) for token in SPECIALS] + [(f"<0x{byte:02X}>", -20.0) for byte in range(256)]
    vocabulary += [(piece, -1.0) for piece in pieces]
    tokenizer = Tokenizer(models.Unigram(vocabulary, unk_id=SPECIALS.index("<|unknown|>"), byte_fallback=True))
    tokenizer.pre_tokenizer = pre_tokenizers.Split("\n", "merged_with_next")  # type: ignore[assignment]
    tokenizer.decoder = decoders.Sequence([decoders.ByteFallback(), decoders.Fuse()])  # type: ignore[assignment]
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token="<|pad|>",
        eos_token="<|end|>",
        unk_token="<|unknown|>",
        additional_special_tokens=["<|system|>", "<|user|>", "<|assistant|>"],
        chat_template=CHAT_TEMPLATE,
        clean_up_tokenization_spaces=False,
        model_max_length=4096,
    )


def build_model(vocabulary: int, end_id: int, pad_id: int, seed: int) -> LlamaForCausalLM:
    torch.manual_seed(seed)
    config = LlamaConfig(
        vocab_size=vocabulary,
        hidden_size=64,
        intermediate_size=192,
        num_hidden_layers=2,
        num_attention_heads=2,  # few and wide: on a CPU attention costs more per head than per dimension
        num_key_value_heads=2,
        rope_parameters={"rope_type": "default", "rope_theta": 100.0},
        max_position_embeddings=4096,
        tie_word_embeddings=True,
        bos_token_id=None,
        eos_token_id=end_id,
        pad_token_id=pad_id,
        initializer_range=0.1,
    )
    return LlamaForCausalLM(config).float()


def _build(directory: Path, warm_start: WarmStart, on_progress: Callable[[int, int], None] | None) -> None:
    tokenizer = build_tokenizer()
    tokenizer.save_pretrained(directory)
    save_grammar(directory, prompt.legal_actions(WorldConfig()), "<|end|>", by_means=True)
    grammar = load_grammar(directory, lambda text: tokenizer.encode(text, add_special_tokens=False), len(tokenizer))
    assert grammar is not None
    end_id = int(tokenizer.convert_tokens_to_ids("<|end|>"))  # type: ignore[arg-type]
    model = build_model(len(tokenizer), end_id, int(tokenizer.pad_token_id), warm_start.seed)  # type: ignore[arg-type]
    tokens, nodes = imitation_data(tokenizer, grammar, warm_start)
    curve = imitate(model, tokens, nodes, grammar, warm_start, on_progress)
    model.save_pretrained(directory)
    tail = curve[-max(len(curve) // 20, 1) :]
    metrics = {
        "parameters": float(sum(p.numel() for p in model.parameters())),
        "vocabulary": float(len(tokenizer)),
        "imitation_loss": sum(point["loss"] for point in tail) / len(tail),
        "episodes": float(warm_start.episodes),
    }
    record = {"metrics": metrics, "curve": curve}
    (directory / "warm_start.json").write_text(json.dumps(record), encoding="utf-8")


def imitation_data(
    tokenizer: PreTrainedTokenizerFast, grammar: Grammar, warm_start: WarmStart
) -> tuple[np.ndarray, np.ndarray]:
    """Conversations of weak agents that take turns by chance. Returns token ids and grammar nodes, both int32
    (episodes, longest); a node is -1 where the token is not the policy's to say, and padding is the pad token."""
    config = WorldConfig()
    seeds = WARM_START_SEEDS[: warm_start.episodes]
    engine = Engine([generate("train", seed, config)[0] for seed in seeds])
    rng = np.random.default_rng([warm_start.seed, 11])
    names, weights = list(MIXTURE), np.array(list(MIXTURE.values()))
    rows = np.arange(engine.n)
    text = f"<|system|>{prompt.system_message(config)}<|end|>"
    ids = [tokenizer.encode(text, add_special_tokens=False) for _ in range(engine.n)]
    node: list[list[int]] = [[-1] * len(row) for row in ids]
    while not engine.done:
        who = rng.choice(len(names), size=engine.n, p=weights)
        seat = Seat(engine, rows, rng.random((engine.n, DRAWS)), None)
        choices = {name: rule(name)(seat) for name in names}
        orders = Orders(
            *(np.choose(who, [getattr(choices[name], part) for name in names]) for part in ("do", "instrument", "size"))
        )
        spoken = prompt.render_orders(orders, config)
        for row, observation in enumerate(prompt.observations(engine)):
            heard = tokenizer.encode(f"<|user|>{observation}<|end|><|assistant|>", add_special_tokens=False)
            answer = tokenizer.encode(spoken[row] + "<|end|>", add_special_tokens=False)
            ids[row] += heard + answer
            node[row] += [-1] * len(heard) + grammar.walk(answer, grammar.start(prompt.means_of(observation)))
        engine.step(orders)
    longest = max(len(row) for row in ids)
    pad = int(tokenizer.pad_token_id)  # type: ignore[arg-type]
    tokens = np.array([row + [pad] * (longest - len(row)) for row in ids], np.int32)
    nodes = np.array([row + [-1] * (longest - len(row)) for row in node], np.int32)
    return tokens, nodes


def imitate(
    model: LlamaForCausalLM,
    tokens: np.ndarray,
    nodes: np.ndarray,
    grammar: Grammar,
    warm_start: WarmStart,
    on_progress: Callable[[int, int], None] | None,
) -> list[dict[str, float]]:
    """Cross entropy on what the agents said, under the grammar. Returns the loss (nats per token) per update."""
    allowed = torch.from_numpy(grammar.allowed)
    rng = np.random.default_rng([warm_start.seed, 12])
    optimizer = torch.optim.AdamW(model.parameters(), lr=warm_start.learning_rate, weight_decay=0.0)
    plan = _updates(nodes, warm_start, rng)
    curve = []
    model.train()
    for update, (rows, heard) in enumerate(plan):
        width = int(np.flatnonzero((heard >= 0).any(axis=0)).max()) + 1
        ids = torch.from_numpy(tokens[rows][:, :width]).long()
        node = torch.from_numpy(heard[:, :width]).long()
        logprobs, _ = masked_logprobs(model, ids, node, allowed)
        spoken = node[:, 1:] >= 0
        loss = -logprobs[spoken].mean()
        warm = min(1.0, (update + 1) / 20)
        decay = 0.5 * (1 + math.cos(math.pi * update / len(plan)))
        for group in optimizer.param_groups:
            group["lr"] = warm_start.learning_rate * warm * (0.1 + 0.9 * decay)
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        curve.append({"update": float(update), "loss": float(loss.detach())})
        if on_progress is not None:
            on_progress(update + 1, len(plan))
    model.eval()
    return curve


def _updates(nodes: np.ndarray, warm_start: WarmStart, rng: np.random.Generator) -> list[tuple[np.ndarray, np.ndarray]]:
    """Rows of each update, and their grammar nodes, int32 (rows, length), with -1 after the ticks to learn from."""
    spoken = nodes >= 0
    tick = np.cumsum(spoken & ~np.pad(spoken, ((0, 0), (1, 0)))[:, :-1], axis=1)
    ticks = int(tick.max())
    plan = []
    for length, passes in (*warm_start.openings, (ticks, warm_start.passes)):
        size = warm_start.batch * max(ticks // length, 1)
        for _ in range(passes):
            order = rng.permutation(len(nodes))
            for start in range(0, len(order) - len(order) % size or len(order), size):
                rows = order[start : start + size]
                plan.append((rows, np.where(tick[rows] <= length, nodes[rows], -1)))
    return plan
