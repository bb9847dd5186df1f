"""What include/graftwork.h declares, for ctypes. Written by python/generate.py: do not edit."""

from __future__ import annotations

from ctypes import (
    CFUNCTYPE,
    POINTER,
    Structure,
    c_char_p,
    c_float,
    c_int32,
    c_size_t,
    c_uint8,
    c_uint32,
    c_uint64,
    c_void_p,
)
from typing import Any

GW_ABI_VERSION = 1
GW_NUL = c_size_t(-1).value
GW_FOREVER = 0xFFFFFFFF
GW_OK = 0
GW_ERR_INVALID_ARG = 1
GW_ERR_NOT_FOUND = 2
GW_ERR_FORMAT = 3
GW_ERR_UNSUPPORTED = 4
GW_ERR_INCOMPATIBLE_ADAPTER = 5
GW_ERR_OUT_OF_MEMORY = 6
GW_ERR_BUDGET = 7
GW_ERR_BUSY = 8
GW_ERR_CANCELLED = 9
GW_ERR_IO = 10
GW_ERR_DEVICE_LOST = 11
GW_ERR_INTERNAL = 12
GW_ERR_ABI = 13
GW_ERR_CONFLICT = 14
GW_SOURCE_COPY = 1
GW_LOG_WARN = 1
GW_LOG_INFO = 2
GW_LOG_DEBUG = 3
GW_DEVICE_CPU = 0
GW_DEVICE_GPU = 1
GW_KV_F16 = 0
GW_KV_F32 = 1
GW_KV_Q8_0 = 2
GW_ENGINE_NO_PREFIXES = 1
GW_ADAPTER_RESIDENT = 1
GW_ADAPTER_PINNED = 2
GW_EVENT_TOKEN = 1
GW_EVENT_FINISHED = 2
GW_EVENT_FAILED = 3
GW_FINISH_STOP = 1
GW_FINISH_STOP_TEXT = 2
GW_FINISH_LENGTH = 3
GW_FINISH_CANCELLED = 4
GW_REQUEST_IGNORE_EOS = 1
GW_REQUEST_LOGPROBS = 2
GW_REQUEST_LOGITS = 4
GW_CONTEXT_STOP = 0
GW_CONTEXT_SHIFT = 1


gw_drop_fn = CFUNCTYPE(None, c_void_p)


gw_read_fn = CFUNCTYPE(c_int32, c_void_p, c_uint64, c_void_p, c_size_t)


class gw_reader(Structure):
    struct_size: int
    reserved: int
    length: int
    read: Any
    user: Any
    drop: Any
    _fields_ = [
        ("struct_size", c_uint32),
        ("reserved", c_uint32),
        ("length", c_uint64),
        ("read", gw_read_fn),
        ("user", c_void_p),
        ("drop", gw_drop_fn),
    ]


gw_log_fn = CFUNCTYPE(None, c_void_p, c_int32, c_void_p, c_size_t)


gw_progress_fn = CFUNCTYPE(c_int32, c_void_p, c_uint64, c_uint64)


gw_task_fn = CFUNCTYPE(None, c_void_p)


gw_execute_fn = CFUNCTYPE(None, c_void_p, gw_task_fn, c_void_p)


class gw_engine_options(Structure):
    struct_size: int
    flags: int
    device: int
    threads: int
    kv_format: int
    max_batch: int
    prefill_chunk: int
    log_level: int
    kv_bytes: int
    log: Any
    log_user: Any
    log_drop: Any
    progress: Any
    progress_user: Any
    execute: Any
    execute_user: Any
    execute_drop: Any
    weight_bytes: int
    adapter_bytes: int
    scratch_bytes: int
    _fields_ = [
        ("struct_size", c_uint32),
        ("flags", c_uint32),
        ("device", c_uint32),
        ("threads", c_uint32),
        ("kv_format", c_uint32),
        ("max_batch", c_uint32),
        ("prefill_chunk", c_uint32),
        ("log_level", c_int32),
        ("kv_bytes", c_uint64),
        ("log", gw_log_fn),
        ("log_user", c_void_p),
        ("log_drop", gw_drop_fn),
        ("progress", gw_progress_fn),
        ("progress_user", c_void_p),
        ("execute", gw_execute_fn),
        ("execute_user", c_void_p),
        ("execute_drop", gw_drop_fn),
        ("weight_bytes", c_uint64),
        ("adapter_bytes", c_uint64),
        ("scratch_bytes", c_uint64),
    ]


class gw_memory(Structure):
    struct_size: int
    reserved: int
    weights: int
    embedding: int
    adapters: int
    kv: int
    kv_used: int
    kv_limit: int
    scratch: int
    adapters_limit: int
    _fields_ = [
        ("struct_size", c_uint32),
        ("reserved", c_uint32),
        ("weights", c_uint64),
        ("embedding", c_uint64),
        ("adapters", c_uint64),
        ("kv", c_uint64),
        ("kv_used", c_uint64),
        ("kv_limit", c_uint64),
        ("scratch", c_uint64),
        ("adapters_limit", c_uint64),
    ]


class gw_engine_info(Structure):
    struct_size: int
    threads: int
    vocab: int
    context: int
    layers: int
    hidden: int
    has_tokenizer: int
    has_chat: int
    reserved: Any
    architecture: Any
    architecture_size: int
    isa: Any
    isa_size: int
    _fields_ = [
        ("struct_size", c_uint32),
        ("threads", c_uint32),
        ("vocab", c_uint32),
        ("context", c_uint32),
        ("layers", c_uint32),
        ("hidden", c_uint32),
        ("has_tokenizer", c_uint8),
        ("has_chat", c_uint8),
        ("reserved", c_uint8 * 6),
        ("architecture", c_void_p),
        ("architecture_size", c_size_t),
        ("isa", c_void_p),
        ("isa_size", c_size_t),
    ]


class gw_adapter_info(Structure):
    struct_size: int
    state: int
    name: Any
    name_size: int
    kind: Any
    kind_size: int
    generation: int
    sites: int
    bytes: int
    requests: int
    loads: int
    _fields_ = [
        ("struct_size", c_uint32),
        ("state", c_uint32),
        ("name", c_void_p),
        ("name_size", c_size_t),
        ("kind", c_void_p),
        ("kind_size", c_size_t),
        ("generation", c_uint64),
        ("sites", c_uint64),
        ("bytes", c_uint64),
        ("requests", c_uint64),
        ("loads", c_uint64),
    ]


class gw_text(Structure):
    data: Any
    size: int
    _fields_ = [
        ("data", c_char_p),
        ("size", c_size_t),
    ]


class gw_message(Structure):
    role: Any
    role_size: int
    content: Any
    content_size: int
    _fields_ = [
        ("role", c_char_p),
        ("role_size", c_size_t),
        ("content", c_char_p),
        ("content_size", c_size_t),
    ]


class gw_use(Structure):
    name: Any
    name_size: int
    weight: float
    reserved: int
    _fields_ = [
        ("name", c_char_p),
        ("name_size", c_size_t),
        ("weight", c_float),
        ("reserved", c_uint32),
    ]


class gw_logit_bias(Structure):
    token: int
    bias: float
    _fields_ = [
        ("token", c_uint32),
        ("bias", c_float),
    ]


class gw_logprob(Structure):
    token: int
    logprob: float
    _fields_ = [
        ("token", c_uint32),
        ("logprob", c_float),
    ]


class gw_event(Structure):
    struct_size: int
    kind: int
    request: int
    text: Any
    text_size: int
    token: int
    finish: int
    logprob: float
    status: int
    top: Any
    top_count: int
    logits: Any
    logits_count: int
    message: Any
    message_size: int
    _fields_ = [
        ("struct_size", c_uint32),
        ("kind", c_int32),
        ("request", c_uint64),
        ("text", c_void_p),
        ("text_size", c_size_t),
        ("token", c_uint32),
        ("finish", c_int32),
        ("logprob", c_float),
        ("status", c_int32),
        ("top", POINTER(gw_logprob)),
        ("top_count", c_size_t),
        ("logits", POINTER(c_float)),
        ("logits_count", c_size_t),
        ("message", c_void_p),
        ("message_size", c_size_t),
    ]


gw_event_fn = CFUNCTYPE(c_int32, c_void_p, POINTER(gw_event))


class gw_request(Structure):
    struct_size: int
    flags: int
    text: Any
    text_size: int
    tokens: Any
    token_count: int
    messages: Any
    message_count: int
    chat_json: Any
    chat_json_size: int
    adapters: Any
    adapter_count: int
    stops: Any
    stop_count: int
    stop_tokens: Any
    stop_token_count: int
    logit_bias: Any
    logit_bias_count: int
    max_tokens: int
    seed: int
    temperature: float
    top_k: int
    top_p: float
    min_p: float
    repetition_penalty: float
    presence_penalty: float
    frequency_penalty: float
    penalty_last_n: int
    top_logprobs: int
    context: int
    grammar: Any
    grammar_size: int
    on_event: Any
    user: Any
    drop: Any
    keep: int
    _fields_ = [
        ("struct_size", c_uint32),
        ("flags", c_uint32),
        ("text", c_char_p),
        ("text_size", c_size_t),
        ("tokens", POINTER(c_uint32)),
        ("token_count", c_size_t),
        ("messages", POINTER(gw_message)),
        ("message_count", c_size_t),
        ("chat_json", c_char_p),
        ("chat_json_size", c_size_t),
        ("adapters", POINTER(gw_use)),
        ("adapter_count", c_size_t),
        ("stops", POINTER(gw_text)),
        ("stop_count", c_size_t),
        ("stop_tokens", POINTER(c_uint32)),
        ("stop_token_count", c_size_t),
        ("logit_bias", POINTER(gw_logit_bias)),
        ("logit_bias_count", c_size_t),
        ("max_tokens", c_uint64),
        ("seed", c_uint64),
        ("temperature", c_float),
        ("top_k", c_uint32),
        ("top_p", c_float),
        ("min_p", c_float),
        ("repetition_penalty", c_float),
        ("presence_penalty", c_float),
        ("frequency_penalty", c_float),
        ("penalty_last_n", c_uint32),
        ("top_logprobs", c_uint32),
        ("context", c_uint32),
        ("grammar", c_char_p),
        ("grammar_size", c_size_t),
        ("on_event", gw_event_fn),
        ("user", c_void_p),
        ("drop", gw_drop_fn),
        ("keep", c_uint64),
    ]


# Results and parameters.
FUNCTIONS: dict[str, tuple[Any, list[Any]]] = {
    "gw_error_code": (c_int32, [c_void_p]),
    "gw_error_message": (c_void_p, [c_void_p, POINTER(c_size_t)]),
    "gw_error_detail": (c_void_p, [c_void_p, POINTER(c_size_t)]),
    "gw_error_free": (None, [POINTER(c_void_p)]),
    "gw_status_name": (c_void_p, [c_int32]),
    "gw_abi_version": (c_uint32, []),
    "gw_version": (c_void_p, []),
    "gw_has_feature": (c_int32, [c_char_p, c_size_t]),
    "gw_source_path": (c_int32, [c_char_p, c_size_t, c_uint32, POINTER(c_void_p), POINTER(c_void_p)]),
    "gw_source_fd": (c_int32, [c_int32, c_uint64, c_uint64, c_uint32, POINTER(c_void_p), POINTER(c_void_p)]),
    "gw_source_memory": (c_int32, [c_void_p, c_size_t, c_uint32, gw_drop_fn, c_void_p, POINTER(c_void_p), POINTER(c_void_p)]),
    "gw_source_reader": (c_int32, [POINTER(gw_reader), POINTER(c_void_p), POINTER(c_void_p)]),
    "gw_source_directory": (c_int32, [POINTER(c_void_p), POINTER(c_void_p)]),
    "gw_source_add": (c_int32, [c_void_p, c_char_p, c_size_t, c_void_p, POINTER(c_void_p)]),
    "gw_source_free": (None, [POINTER(c_void_p)]),
    "gw_engine_options_init": (c_int32, [POINTER(gw_engine_options), c_size_t]),
    "gw_engine_plan": (c_int32, [c_void_p, POINTER(gw_engine_options), POINTER(gw_memory), POINTER(c_void_p)]),
    "gw_engine_open": (c_int32, [c_void_p, POINTER(gw_engine_options), POINTER(c_void_p), POINTER(c_void_p)]),
    "gw_engine_close": (None, [POINTER(c_void_p)]),
    "gw_engine_describe": (c_int32, [c_void_p, POINTER(gw_engine_info), POINTER(c_void_p)]),
    "gw_engine_memory": (c_int32, [c_void_p, POINTER(gw_memory), POINTER(c_void_p)]),
    "gw_adapter_load": (c_int32, [c_void_p, c_char_p, c_size_t, c_void_p, POINTER(c_uint64), POINTER(c_void_p)]),
    "gw_adapter_replace": (c_int32, [c_void_p, c_char_p, c_size_t, c_void_p, c_uint64, POINTER(c_uint64), POINTER(c_void_p)]),
    "gw_adapter_unload": (c_int32, [c_void_p, c_char_p, c_size_t, POINTER(c_void_p)]),
    "gw_adapter_pin": (c_int32, [c_void_p, c_char_p, c_size_t, c_int32, POINTER(c_void_p)]),
    "gw_adapter_list": (c_int32, [c_void_p, POINTER(c_void_p), POINTER(c_void_p)]),
    "gw_adapter_describe": (c_int32, [c_void_p, c_char_p, c_size_t, POINTER(c_void_p), POINTER(c_void_p)]),
    "gw_adapters_count": (c_size_t, [c_void_p]),
    "gw_adapters_get": (c_int32, [c_void_p, c_size_t, POINTER(gw_adapter_info)]),
    "gw_adapters_free": (None, [POINTER(c_void_p)]),
    "gw_request_init": (c_int32, [POINTER(gw_request), c_size_t]),
    "gw_submit": (c_int32, [c_void_p, POINTER(gw_request), POINTER(c_uint64), POINTER(c_void_p)]),
    "gw_cancel": (c_int32, [c_void_p, c_uint64, POINTER(c_void_p)]),
    "gw_step": (c_int32, [c_void_p, POINTER(c_int32), POINTER(c_void_p)]),
    "gw_poll": (c_int32, [c_void_p, c_uint64, c_uint32, POINTER(POINTER(gw_event)), POINTER(c_void_p)]),
    "gw_event_free": (None, [POINTER(POINTER(gw_event))]),
    "gw_state_save": (c_int32, [c_void_p, c_uint64, POINTER(c_void_p), POINTER(c_void_p)]),
    "gw_state_data": (c_void_p, [c_void_p, POINTER(c_size_t)]),
    "gw_state_write": (c_int32, [c_void_p, c_char_p, c_size_t, POINTER(c_void_p)]),
    "gw_state_free": (None, [POINTER(c_void_p)]),
    "gw_state_resume": (c_int32, [c_void_p, c_void_p, gw_event_fn, c_void_p, gw_drop_fn, POINTER(c_uint64), POINTER(c_void_p)]),
    "gw_prompt_tokens": (c_int32, [c_void_p, POINTER(gw_request), POINTER(c_uint32), c_size_t, POINTER(c_size_t), POINTER(c_void_p)]),
    "gw_detokenize": (c_int32, [c_void_p, POINTER(c_uint32), c_size_t, c_char_p, c_size_t, POINTER(c_size_t), POINTER(c_void_p)]),
    "gw_logits": (c_int32, [c_void_p, POINTER(c_uint32), c_size_t, POINTER(gw_use), c_size_t, POINTER(c_float), c_size_t, POINTER(c_void_p)]),
}

__all__ = [
    "GW_ABI_VERSION",
    "GW_NUL",
    "GW_FOREVER",
    "GW_OK",
    "GW_ERR_INVALID_ARG",
    "GW_ERR_NOT_FOUND",
    "GW_ERR_FORMAT",
    "GW_ERR_UNSUPPORTED",
    "GW_ERR_INCOMPATIBLE_ADAPTER",
    "GW_ERR_OUT_OF_MEMORY",
    "GW_ERR_BUDGET",
    "GW_ERR_BUSY",
    "GW_ERR_CANCELLED",
    "GW_ERR_IO",
    "GW_ERR_DEVICE_LOST",
    "GW_ERR_INTERNAL",
    "GW_ERR_ABI",
    "GW_ERR_CONFLICT",
    "GW_SOURCE_COPY",
    "GW_LOG_WARN",
    "GW_LOG_INFO",
    "GW_LOG_DEBUG",
    "GW_DEVICE_CPU",
    "GW_DEVICE_GPU",
    "GW_KV_F16",
    "GW_KV_F32",
    "GW_KV_Q8_0",
    "GW_ENGINE_NO_PREFIXES",
    "GW_ADAPTER_RESIDENT",
    "GW_ADAPTER_PINNED",
    "GW_EVENT_TOKEN",
    "GW_EVENT_FINISHED",
    "GW_EVENT_FAILED",
    "GW_FINISH_STOP",
    "GW_FINISH_STOP_TEXT",
    "GW_FINISH_LENGTH",
    "GW_FINISH_CANCELLED",
    "GW_REQUEST_IGNORE_EOS",
    "GW_REQUEST_LOGPROBS",
    "GW_REQUEST_LOGITS",
    "GW_CONTEXT_STOP",
    "GW_CONTEXT_SHIFT",
]
