"""Names that the ``train`` section refuses although TRL or transformers know them (or once did), each with its cure.

Either `align` sets them itself, or they would have no effect on packed rows, or they belong to another section.
"""

from __future__ import annotations

from collections.abc import Mapping

_PACKED = "rows are always packed without padding. Bound a micro-batch with train.max_tokens_per_microbatch."
_ANSWERS = "the loss counts the answer's tokens, never the prompt's; leave it out."
_DATA = "belongs to the data section: data.train says where rows come from, and every row is prepared before training."
_SUMS = "evaluation adds up sums and gathers no logits, so it would have no effect; leave it out."
_LAUNCH = "belongs to the launcher: accelerate launch --config_file recipes/accelerate/NAME.yaml -m align.train FILE."
_UPLOAD = "set output.push: USER/NAME, which pushes the finished model, or push it yourself: align push RUN REPO."
_VERB = "the verb says it: align train FILE; held-out rows are evaluated when data.held_out is given."

REFUSED: Mapping[str, str] = {
    # set at another place of the recipe
    "output_dir": "set output: at the top of the recipe.",
    "run_name": "set name: at the top of the recipe.",
    "seed": "set seed: at the top of the recipe.",
    "data_seed": "the order of rows follows seed: at the top of the recipe.",
    "max_length": "set data.max_length.",
    "max_prompt_length": "set data.max_length, and data.truncation: prompt_left to cut prompts.",
    "max_completion_length": "set data.max_length.",
    "max_seq_length": "set data.max_length.",
    "truncation_mode": "set data.truncation.",
    "chat_template_path": "set model.chat_template.",
    "eos_token": "it is the tokenizer's; set model.tokenizer.",
    "pad_token": "it is the tokenizer's, and packed rows need none; set model.tokenizer.",
    "model_init_kwargs": "set model.dtype, model.revision, model.attention or model.load_in.",
    "ref_model_init_kwargs": "the reference is the policy at the start; set reference.strategy.",
    "model_name_or_path": "set model.id.",
    "torch_dtype": "set model.dtype.",
    "attn_implementation": "set model.attention.",
    "trust_remote_code": "code from the Hub is never run; use a model that transformers itself implements.",
    "use_peft": "add model.lora: {}.",
    "lora_r": "set model.lora.rank.",
    "lora_alpha": "set model.lora.alpha.",
    "lora_dropout": "set model.lora.dropout.",
    "lora_target_modules": "set model.lora.targets.",
    "load_in_4bit": "set model.load_in: 4bit.",
    "load_in_8bit": "set model.load_in: 8bit.",
    "dataset_name": "set data.train.id.",
    "dataset_config": "set data.train.subset.",
    "dataset_text_field": _DATA,
    "dataset_kwargs": _DATA,
    "dataset_num_proc": _DATA,
    "shuffle_dataset": "training rows are always shuffled, as a function of seed.",
    "loss_type": "set objective.name.",
    "loss_weights": "make objective a list, each part with its weight.",
    "beta": "set objective.beta.",
    "label_smoothing": "set objective.label_smoothing.",
    "label_smoothing_factor": "set objective.label_smoothing.",
    "rpo_alpha": "use objective: {name: rpo}, or a list of dpo and nll with weights.",
    "reference_free": "use an objective without a reference, such as simpo.",
    "precompute_ref_log_probs": "reference.store does it, and keeps them for the next run.",
    "sync_ref_model": "set reference.sync_every and reference.sync_mix.",
    "ref_model_sync_steps": "set reference.sync_every.",
    "ref_model_mixup_alpha": "set reference.sync_mix.",
    # packing, masks and micro-batches are ours
    "packing": _PACKED,
    "packing_strategy": _PACKED,
    "padding_free": _PACKED,
    "eval_packing": _PACKED,
    "pad_to_multiple_of": _PACKED,
    "group_by_length": _PACKED,
    "length_column_name": _PACKED,
    "train_sampling_strategy": _PACKED,
    "auto_find_batch_size": "it would restart the run with another plan; lower train.per_device_train_batch_size.",
    "completion_only_loss": _ANSWERS,
    "assistant_only_loss": _ANSWERS,
    "average_tokens_across_devices": "every loss is already divided by its own count over all devices; leave it out.",
    "remove_unused_columns": "batches are built from the columns the objective names; leave it out.",
    "label_names": "batches are built from the columns the objective names; leave it out.",
    "logging_nan_inf_filter": "it would hide a loss that is no longer finite; leave it out.",
    "ignore_data_skip": "a resumed run always goes on with the rows that were next; leave it out.",
    "restore_callback_states_from_checkpoint": "a resumed run takes up all that it needs; leave it out.",
    "enable_jit_checkpoint": "a run that is asked to end saves by itself; leave it out.",
    "save_on_each_node": "checkpoints are written once, to a folder that all machines share; leave it out.",
    "use_cache": "the cache is used when sampling and never in training; leave it out.",
    "neftune_noise_alpha": "noise in the embeddings is not supported: the reference would see other inputs.",
    "prediction_loss_only": _SUMS,
    "eval_accumulation_steps": _SUMS,
    "eval_do_concat_batches": _SUMS,
    "eval_use_gather_object": _SUMS,
    "include_for_metrics": _SUMS,
    "batch_eval_metrics": _SUMS,
    # not supported
    "torch_compile_backend": "train.torch_compile uses inductor; leave it out.",
    "liger_kernel_config": "train.use_liger_kernel fuses all layers that can be; the loss has a way of its own.",
    "parallelism_config": "sequence, context, tensor and pipeline parallelism are not supported.",
    # the launcher's, or the verb's
    "deepspeed": _LAUNCH,
    "fsdp": _LAUNCH,
    "fsdp_config": _LAUNCH,
    "accelerator_config": _LAUNCH,
    "local_rank": _LAUNCH,
    "do_train": _VERB,
    "do_eval": _VERB,
    "do_predict": _VERB,
    "resume_from_checkpoint": "use align train FILE --resume.",
    "push_to_hub": _UPLOAD,
    "hub_token": _UPLOAD,
    "hub_private_repo": _UPLOAD,
    "hub_model_id": _UPLOAD,
    "hub_strategy": _UPLOAD,
    "hub_always_push": _UPLOAD,
    "hub_revision": _UPLOAD,
    # names of older versions
    "warmup_ratio": "use train.warmup_steps with a value below 1, such as 0.1: it is a share of all steps.",
    "evaluation_strategy": "its name is train.eval_strategy.",
    "no_cuda": "its name is train.use_cpu.",
    "save_safetensors": "weights are always saved as safetensors; leave it out.",
    "overwrite_output_dir": "set another name: or output: at the top, or remove the old run directory.",
}
