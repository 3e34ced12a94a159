"""Refuse keys of config.json that nobody reads, but for those that are known to change no number of the model."""

from __future__ import annotations

from collections.abc import Collection, Mapping

from hetjax.models.errors import ModelError
from hetjax.models.json_values import Json


def key_names(text: str) -> frozenset[str]:
    """Return the names in a text, which spaces and lines divide."""
    return frozenset(text.split())


NEUTRAL = key_names(
    """
    _attn_implementation _attn_implementation_autoset _attn_implementation_internal _commit_hash _name_or_path
    architectures attn_implementation auto_map dtype finetuning_task id2label initializer_factor initializer_range
    label2id library_name max_position_embeddings model_type name_or_path output_attentions output_hidden_states
    pretraining_tp problem_type processor_class prefix quantization_config return_dict task_specific_params
    tokenizer_class torch_dtype torchscript transformers_version unsloth_fixed unsloth_version use_bfloat16 use_cache
    use_return_dict tf_legacy_loss chunk_size_feed_forward gradient_checkpointing is_decoder is_encoder_decoder
    add_cross_attention cross_attention_hidden_size tie_encoder_decoder pruned_heads
    bos_token_id eos_token_id pad_token_id sep_token_id decoder_start_token_id
    bad_words_ids begin_suppress_tokens diversity_penalty do_sample early_stopping encoder_no_repeat_ngram_size
    exponential_decay_length_penalty forced_bos_token_id forced_eos_token_id length_penalty max_length min_length
    no_repeat_ngram_size num_beam_groups num_beams num_return_sequences output_scores remove_invalid_values
    repetition_penalty return_dict_in_generate suppress_tokens temperature top_k top_p typical_p
    """
)
"""Keys of any model that say how it is called, started, stored or sampled from, and nothing of its numbers."""


def check_known(hf: Mapping[str, Json], *read: Collection[str]) -> None:
    """Raise ModelError for a key of config.json that is neither `read` nor neutral; null says nothing."""
    known = NEUTRAL.union(*read)
    unknown = sorted(key for key, value in hf.items() if value is not None and key not in known)
    if unknown:
        named = ", ".join(f"{key} = {hf[key]!r}" for key in unknown)
        raise ModelError(
            f"config.json of {hf.get('model_type')}: {named} is not known here and may change the model's numbers; "
            "where it changes none, delete it from config.json"
        )
