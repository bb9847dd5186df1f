/* graftwork.h: the C interface of Graftwork, an LLM runtime with adapters that are swapped per request.
 *
 * One engine holds one base model and any number of adapters. Requests name the adapters that answer them; all
 * requests run together in one batch, and an answer never depends on who shares it. Nothing happens by itself:
 * gw_step and gw_poll do the work, on the thread that calls them and the engine's own.
 *
 *     gw_source *model = NULL; gw_engine *engine = NULL; gw_event *event = NULL; gw_error *error = NULL;
 *     gw_message message = {GW_TEXT("user"), GW_TEXT("Why is the sky blue?")};
 *     gw_request request = GW_REQUEST_INIT;
 *     request.messages = &message;
 *     request.message_count = 1;
 *
 *     if (gw_source_path("model.gguf", GW_NUL, 0, &model, &error) == GW_OK &&
 *         gw_engine_open(model, NULL, &engine, &error) == GW_OK &&
 *         gw_submit(engine, &request, NULL, &error) == GW_OK)
 *         for (int done = 0; !done && gw_poll(engine, 0, GW_FOREVER, &event, &error) == GW_OK;) {
 *             fwrite(event->text, 1, event->text_size, stdout);
 *             done = event->kind != GW_EVENT_TOKEN;
 *             gw_event_free(&event);
 *         }
 *     if (error) fprintf(stderr, "%s\n", gw_error_message(error, NULL));
 *     gw_error_free(&error);
 *     gw_engine_close(&engine);
 *     gw_source_free(&model);
 *
 * RULES
 *
 * Status. A function that can fail returns a gw_status and takes a `gw_error **`, which may be NULL. It is set to
 * NULL on success and to a new error on failure; free that with gw_error_free. Other results are written on success
 * only, except where a function says otherwise. Nothing aborts the process: a bug in the library (a panic) is caught
 * and reported as GW_ERR_INTERNAL, and the engine it happened in then refuses everything but gw_engine_close and
 * gw_engine_memory; memory whose size follows from a model, a file, a batch or an array of the caller's may be
 * refused and gives GW_ERR_OUT_OF_MEMORY. What cannot be caught: the system killing the process, such as for a
 * mapped file that somebody truncates (see GW_SOURCE_COPY), and a system that refuses even small pieces of memory.
 *
 * Handles. gw_engine, gw_source, gw_adapters, gw_event, gw_state and gw_error are made by the library. Each is given
 * back once, to its own function, which takes the address of the pointer and sets it to NULL; called again with the
 * same address, or with a pointer that is NULL, it does nothing.
 *
 * Threads. A function that takes `const T *` may be called with one T from several threads at once; for an engine
 * that is all of them but gw_engine_close. A function that takes `T *` or `T **` of a handle needs it to itself. An
 * engine's memory, locks and threads are its own; several engines live in one process.
 *
 * Text is UTF-8, given as a pointer and a number of bytes; GW_NUL as the number stands for "up to the NUL". Text
 * that comes out has a size and is followed by a NUL that does not count.
 *
 * Structs begin with struct_size, which the caller sets to the sizeof it was compiled with (GW_..._INIT does). The
 * library reads and writes no more than that. A field that is zero has its default. Later versions append fields; a
 * caller that was compiled with an older header goes on working, and one with a newer header gets GW_ERR_ABI if it
 * sets a field that the library does not know. Structs that are elements of arrays (gw_text, gw_message, gw_use,
 * gw_logit_bias, gw_logprob) never change.
 *
 * Callbacks are called with no lock held, so they may call the library, gw_step and gw_poll too, on threads that the
 * description names. Those of requests are called one at a time in an engine: what a step in a callback brings about
 * is told when that callback has returned. They must not throw or longjmp through the library. `drop`, where there
 * is one, is called once with `user` when the library lets go of it: not at all if the call that should have taken
 * it failed.
 *
 * The library prints nothing, reads no environment variable, installs no signal handler and has no global state that
 * a caller could see. Closing an engine joins its threads. */

#ifndef GRAFTWORK_H
#define GRAFTWORK_H

#include <stddef.h>
#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

/* The ABI described here: functions and enum values are only ever added to it. */
#define GW_ABI_VERSION 1

#if defined(_WIN32) && defined(GW_SHARED)
#define GW_API __declspec(dllimport)
#else
#define GW_API
#endif

#if defined(__GNUC__) || defined(__clang__)
#define GW_MUST_USE __attribute__((warn_unused_result))
#else
#define GW_MUST_USE
#endif

/* Marks parameters that may be NULL. NULL anywhere else gives GW_ERR_INVALID_ARG, 0 or NULL, and does nothing; but
 * an array that is only read may be NULL where its count is 0. */
#define GW_OPTIONAL

/* As a size: the text ends at its NUL. */
#define GW_NUL ((size_t)-1)
/* A string literal as pointer and size. */
#define GW_TEXT(literal) (literal), (sizeof(literal) - 1)
/* As a timeout: no end. */
#define GW_FOREVER UINT32_MAX

/* ---------------------------------------------------------------------------------------------------------- Status */

/* What became of a call. Later versions may return values that are not listed here: failures, all of them. */
typedef int32_t gw_status;
enum {
    GW_OK = 0,
    GW_ERR_INVALID_ARG = 1,          /* An argument or option has no meaning. */
    GW_ERR_NOT_FOUND = 2,            /* No such file, adapter or request. */
    GW_ERR_FORMAT = 3,               /* A file is malformed. */
    GW_ERR_UNSUPPORTED = 4,          /* Understood, or not, but nothing that this version can compute. */
    GW_ERR_INCOMPATIBLE_ADAPTER = 5, /* The adapter does not fit the model. */
    GW_ERR_OUT_OF_MEMORY = 6,        /* The system refused memory. */
    GW_ERR_BUDGET = 7,               /* A limit of the engine's options would be exceeded. */
    GW_ERR_BUSY = 8,                 /* Not now. */
    GW_ERR_CANCELLED = 9,            /* A callback asked for the end. */
    GW_ERR_IO = 10,                  /* Reading or writing failed. */
    GW_ERR_DEVICE_LOST = 11,         /* The device that computes is gone. */
    GW_ERR_INTERNAL = 12,            /* A bug in the library. */
    GW_ERR_ABI = 13,                 /* A struct is too small, or sets fields that this version does not know. */
    GW_ERR_CONFLICT = 14             /* The adapter's name is taken, or belongs to another generation. */
};

/* Why a call failed. */
typedef struct gw_error gw_error;

/* The status that the call returned; GW_OK for NULL. */
GW_API gw_status gw_error_code(const gw_error *error);

/* What happened, for people: what, where, expected and found. Lives as long as the error; NULL for NULL. */
GW_API const char *gw_error_message(const gw_error *error, size_t *size GW_OPTIONAL);

/* What it is about, for programs: the tensor, key, field, option, file or adapter, by name; "" if it is none of these.
 * Lives as long as the error; NULL for NULL. */
GW_API const char *gw_error_detail(const gw_error *error, size_t *size GW_OPTIONAL);

GW_API void gw_error_free(gw_error **error);

/* The name of a status, such as "GW_ERR_BUDGET"; "GW_ERR_UNKNOWN" for values that this version does not know. */
GW_API const char *gw_status_name(gw_status status);

/* --------------------------------------------------------------------------------------------------------- Version */

/* The ABI of the library that is linked: compare with GW_ABI_VERSION. */
GW_API uint32_t gw_abi_version(void);

/* The version of the library that is linked, such as "0.2.0". */
GW_API const char *gw_version(void);

/* 1 if the library has a capability, 0 if not: an adapter kind ("lora"), a weight format ("q4_1"), a container ("gguf",
 * "safetensors"), a way to open files ("fd"), a device ("cpu", "gpu"), requests that are saved ("state"), adapters that
 * make room for each other ("budget"), or "grammar". Names are in small letters. */
GW_API int32_t gw_has_feature(const char *name, size_t name_size);

/* ---------------------------------------------------------------------------------------------------------- Sources */

/* Where a model or an adapter comes from. May be used for any number of engines and adapters, and freed at once after.
 *
 * A model is a GGUF file, or a directory as Hugging Face lays it out (config.json, *.safetensors, tokenizer.json). An
 * adapter is a GGUF file, or a directory as PEFT writes it (adapter_config.json, adapter_model.safetensors). */
typedef struct gw_source gw_source;

/* Lets go of `user`. */
typedef void (*gw_drop_fn)(void *user);

/* Copies files into memory instead of mapping them. A mapped file takes no memory of its own, but truncating it
 * while it is in use kills the process, and writing to it changes weights under a running model. Replacing a file by
 * renaming another over it is safe either way. Adapters of at most 64 MiB that are given as a path are always
 * copied. */
#define GW_SOURCE_COPY UINT32_C(1)

/* A file or a directory. `flags`: 0 or GW_SOURCE_COPY. Nothing is opened yet. On Unix a path is any bytes, not UTF-8
 * alone. */
GW_API GW_MUST_USE gw_status gw_source_path(const char *path, size_t path_size, uint32_t flags, gw_source **source,
                                            gw_error **error GW_OPTIONAL);

/* `length` bytes from `offset` of an open regular file, such as an asset inside of an Android package; length 0
 * stands for all up to the end. `flags`: 0 or GW_SOURCE_COPY. The descriptor may be closed afterwards; its position
 * stays. GW_ERR_UNSUPPORTED where files have no descriptors. */
GW_API GW_MUST_USE gw_status gw_source_fd(int32_t fd, uint64_t offset, uint64_t length, uint32_t flags,
                                          gw_source **source, gw_error **error GW_OPTIONAL);

/* `size` bytes in memory. With GW_SOURCE_COPY they are copied and belong to the caller again when this returns (and
 * drop has been called). Without, they must stay as they are until `drop` is called, from any thread, when neither
 * this source nor anything opened from it needs them any more. */
GW_API GW_MUST_USE gw_status gw_source_memory(const void *data, size_t size, uint32_t flags,
                                              gw_drop_fn drop GW_OPTIONAL, void *user GW_OPTIONAL, gw_source **source,
                                              gw_error **error GW_OPTIONAL);

/* Reads `size` bytes from `offset` of a file into `buffer`. Non-zero if that is not possible. */
typedef int32_t (*gw_read_fn)(void *user, uint64_t offset, void *buffer, size_t size);

/* A file that only the caller can read. */
typedef struct gw_reader {
    uint32_t struct_size;
    uint32_t reserved;
    uint64_t length; /* Bytes of the file. */
    gw_read_fn read; /* Must not be NULL. */
    void *user;
    gw_drop_fn drop; /* May be NULL. */
} gw_reader;

#define GW_READER_INIT {sizeof(gw_reader), 0, 0, NULL, NULL, NULL}

/* A file that `reader` reads: from its start to its end, on this thread, before this returns. Then `drop` is called. */
GW_API GW_MUST_USE gw_status gw_source_reader(const gw_reader *reader, gw_source **source, gw_error **error GW_OPTIONAL);

/* An empty directory in memory, for gw_source_add. */
GW_API GW_MUST_USE gw_status gw_source_directory(gw_source **source, gw_error **error GW_OPTIONAL);

/* Adds a file of this name to a directory made by gw_source_directory. `file` is a source of one file; it may be freed
 * afterwards. GW_ERR_CONFLICT if the directory has a file of that name. */
GW_API GW_MUST_USE gw_status gw_source_add(gw_source *directory, const char *name, size_t name_size,
                                           const gw_source *file, gw_error **error GW_OPTIONAL);

GW_API void gw_source_free(gw_source **source);

/* ---------------------------------------------------------------------------------------------------------- Engines */

/* One model, its adapters, and everybody's requests. */
typedef struct gw_engine gw_engine;

/* Hears what the engine does. Called from any thread that calls the library or that the engine started. */
typedef void (*gw_log_fn)(void *user, int32_t level, const char *message, size_t message_size);
enum { GW_LOG_WARN = 1, GW_LOG_INFO = 2, GW_LOG_DEBUG = 3 };

/* Hears how far loading is: `done` of `all` parts. Non-zero ends it with GW_ERR_CANCELLED. Called from the threads
 * that load, also from several at once, so it may hear more after it ended it. */
typedef int32_t (*gw_progress_fn)(void *user, uint64_t done, uint64_t all);

/* Takes part in a step until that is over. Returns at once if it is over already, also if the engine is gone, or on
 * the very thread that the task was given out on. */
typedef void (*gw_task_fn)(void *task);

/* Passes a task on to another thread, which calls run(task) once and soon, and returns without waiting for that.
 * Called inside of a step, so it must not call the library. Tasks of a step should run at the same time, but that is a
 * matter of speed alone: whatever no task does, the thread that steps does, and answers are equal to the bit. A task
 * that no thread will take is given back by run(task) as well; one that is never run takes a little memory for ever. */
typedef void (*gw_execute_fn)(void *user, gw_task_fn run, void *task);

enum { GW_DEVICE_CPU = 0, GW_DEVICE_GPU = 1 /* GW_ERR_UNSUPPORTED in this version. */ };
/* GW_KV_Q8_0: 8-bit codes with a scale for each 32 values of a head, 0.53 of the memory of GW_KV_F16. */
enum { GW_KV_F16 = 0, GW_KV_F32 = 1, GW_KV_Q8_0 = 2 };

/* Forget keys and values when a request ends. By default they are kept while there is room, and later requests that
 * begin with the same tokens under the same adapters start from there; their answers are equal to the bit. */
#define GW_ENGINE_NO_PREFIXES UINT32_C(1)

typedef struct gw_engine_options {
    uint32_t struct_size;
    uint32_t flags;         /* 0 or GW_ENGINE_NO_PREFIXES. */
    uint32_t device;        /* GW_DEVICE_... */
    uint32_t threads;       /* That compute, the one that steps among them. 0: one per core. */
    uint32_t kv_format;     /* GW_KV_...: what keys and values are cached as. */
    uint32_t max_batch;     /* Most requests that run at once; others wait. 0: 32. */
    uint32_t prefill_chunk; /* Most rows of prompts in a step: more read prompts faster, fewer make steps shorter. 0: 512. */
    int32_t log_level;      /* GW_LOG_...: the most talkative that `log` wants to hear. 0: GW_LOG_INFO. */
    uint64_t kv_bytes;      /* Most bytes of the KV cache, which grows as it is needed. 0: 1 GiB. */
    gw_log_fn log;          /* NULL: silence. */
    void *log_user;
    gw_drop_fn log_drop;         /* May be NULL. */
    gw_progress_fn progress;     /* May be NULL. Not called after gw_engine_open returns. */
    void *progress_user;
    gw_execute_fn execute;       /* Lends the other threads: `threads` - 1 tasks in each step. NULL: the engine's own. */
    void *execute_user;
    gw_drop_fn execute_drop;     /* May be NULL. Called when no more tasks will come; some may be left to run. */
    uint64_t weight_bytes;  /* Most bytes of weights and embedding: a larger model is not opened. 0: no limit. */
    uint64_t adapter_bytes; /* Most bytes of adapters in memory, see Adapters below. 0: no limit. */
    uint64_t scratch_bytes; /* Most bytes of activations: smaller prefill_chunk and max_batch take fewer. 0: no limit. */
} gw_engine_options;

#define GW_ENGINE_OPTIONS_INIT \
    {sizeof(gw_engine_options), 0, 0, 0, 0, 0, 0, 0, 0, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, 0, 0, 0}

/* Sets all fields to their defaults: what GW_ENGINE_OPTIONS_INIT does, for languages without macros. */
GW_API GW_MUST_USE gw_status gw_engine_options_init(gw_engine_options *options, size_t size);

/* Bytes, by class. */
typedef struct gw_memory {
    uint32_t struct_size;
    uint32_t reserved;
    uint64_t weights;   /* The model as packed for the device: what a decode step reads. */
    uint64_t embedding; /* The embedding as in its file: of which a token reads one row. No memory of its own if mapped. */
    uint64_t adapters;  /* Adapters in memory: loaded, or not any more but still used by requests. */
    uint64_t kv;        /* The KV cache as it has grown. */
    uint64_t kv_used;   /* The part of it that requests hold. */
    uint64_t kv_limit;  /* What it may grow to. */
    uint64_t scratch;   /* Activations of a step, and what kernels need beside them, as they have grown. */
    uint64_t adapters_limit; /* What adapters may grow to: adapter_bytes; 0 for no limit. */
} gw_memory;

#define GW_MEMORY_INIT {sizeof(gw_memory), 0, 0, 0, 0, 0, 0, 0, 0, 0}

/* What gw_engine_open of the same source and options would take, without doing it: weights and embedding as they
 * will be, kv 0 and kv_limit as set, scratch at its largest without adapters. Where files are mapped, reads little
 * more than headers. Calls and drops nothing of the options. */
GW_API GW_MUST_USE gw_status gw_engine_plan(const gw_source *source, const gw_engine_options *options GW_OPTIONAL,
                                            gw_memory *memory, gw_error **error GW_OPTIONAL);

/* Opens a model. `options` NULL: all defaults. */
GW_API GW_MUST_USE gw_status gw_engine_open(const gw_source *source, const gw_engine_options *options GW_OPTIONAL,
                                            gw_engine **engine, gw_error **error GW_OPTIONAL);

/* Ends everything: requests that have not ended get no more events, threads are joined, memory is freed, callbacks
 * are dropped. No other thread may be inside of a call with this engine. A callback of it may close it: nothing more
 * is told, and the end comes when the call that it came from returns. */
GW_API void gw_engine_close(gw_engine **engine);

/* What a model is. */
typedef struct gw_engine_info {
    uint32_t struct_size;
    uint32_t threads;         /* That compute. */
    uint32_t vocab;           /* Tokens: ids are below this, and logits are this many. */
    uint32_t context;         /* Most positions of a sequence. */
    uint32_t layers;
    uint32_t hidden;          /* Width of the residual stream. */
    uint8_t has_tokenizer;    /* Text can go in and come out, not tokens alone. */
    uint8_t has_chat;         /* Messages can be given: there is a chat template that can be used. */
    uint8_t reserved[6];
    const char *architecture; /* Such as "llama". Lives as long as the engine, as does isa. */
    size_t architecture_size;
    const char *isa;          /* The instruction set that kernels use, such as "avx2". */
    size_t isa_size;
} gw_engine_info;

#define GW_ENGINE_INFO_INIT {sizeof(gw_engine_info), 0, 0, 0, 0, 0, 0, 0, {0, 0, 0, 0, 0, 0}, NULL, 0, NULL, 0}

GW_API GW_MUST_USE gw_status gw_engine_describe(const gw_engine *engine, gw_engine_info *info,
                                                gw_error **error GW_OPTIONAL);

/* Bytes in memory, as the last step left it. */
GW_API GW_MUST_USE gw_status gw_engine_memory(const gw_engine *engine, gw_memory *memory, gw_error **error GW_OPTIONAL);

/* --------------------------------------------------------------------------------------------------------- Adapters */

/* An adapter is loaded under a name and never changes. What changes is which one a name means: each has a
 * generation, a number that no other adapter of the process ever has. A request keeps the adapters that its names
 * meant when it was submitted until it ends, whatever happens to the names meanwhile. Adapters are loaded on the
 * calling thread, while requests run.
 *
 * With gw_engine_options.adapter_bytes, adapters take no more memory than that, however many are loaded. When one
 * needs room, those whose last use is the longest ago leave memory, but for those that are pinned or that running
 * requests use; they keep name and generation, and come back from their source when a request needs them: in gw_submit
 * while there is room beside adapters that other requests wait for, else in the step that starts the request, which
 * waits until there is. So their sources must hold what they held: files stay as they are
 * (a new version gets a new path), memory stays lent, and takes its bytes beside the limit. Where one does not (of more
 * than 64 MiB, samples are compared), the request fails with GW_ERR_CONFLICT and computes nothing. A request whose adapters could never be in
 * memory together, beside those that are pinned, gets GW_ERR_BUDGET. Calls that need an adapter in memory at once
 * (gw_adapter_load, _replace and _pin, gw_logits) get GW_ERR_BUSY where those that are in use leave no room. While one
 * is loaded, its file and the matrix in progress take memory beside. */

/* Loads an adapter under a name that is free; GW_ERR_CONFLICT if it is not. */
GW_API GW_MUST_USE gw_status gw_adapter_load(const gw_engine *engine, const char *name, size_t name_size,
                                             const gw_source *source, uint64_t *generation GW_OPTIONAL,
                                             gw_error **error GW_OPTIONAL);

/* Gives a name that is in use to another adapter; GW_ERR_NOT_FOUND if it is not. If `expected` is not 0, only if the
 * name still belongs to that generation: GW_ERR_CONFLICT if not, and then nothing changes (compare and swap). */
GW_API GW_MUST_USE gw_status gw_adapter_replace(const gw_engine *engine, const char *name, size_t name_size,
                                                const gw_source *source, uint64_t expected,
                                                uint64_t *generation GW_OPTIONAL, gw_error **error GW_OPTIONAL);

/* Frees a name. Its adapter's memory goes with the last request that uses it. */
GW_API GW_MUST_USE gw_status gw_adapter_unload(const gw_engine *engine, const char *name, size_t name_size,
                                               gw_error **error GW_OPTIONAL);

/* Keeps an adapter in memory (`pinned` not 0), until its name is freed, given to another adapter or unpinned; brings it
 * there if it is not. GW_ERR_BUSY or GW_ERR_BUDGET if it finds no room. */
GW_API GW_MUST_USE gw_status gw_adapter_pin(const gw_engine *engine, const char *name, size_t name_size,
                                            int32_t pinned, gw_error **error GW_OPTIONAL);

/* Some adapters as they were when they were listed. */
typedef struct gw_adapters gw_adapters;

enum {
    GW_ADAPTER_RESIDENT = 1, /* It is in memory. */
    GW_ADAPTER_PINNED = 2    /* It stays there. */
};

typedef struct gw_adapter_info {
    uint32_t struct_size;
    uint32_t state;   /* GW_ADAPTER_..., added up. */
    const char *name; /* Lives as long as the list, as does kind. */
    size_t name_size;
    const char *kind; /* Such as "lora". */
    size_t kind_size;
    uint64_t generation;
    uint64_t sites;    /* Places of the model that it changes. */
    uint64_t bytes;    /* That it takes while it is in memory. */
    uint64_t requests; /* How many times requests use it or wait for it. */
    uint64_t loads;    /* How many times it came into memory. */
} gw_adapter_info;

#define GW_ADAPTER_INFO_INIT {sizeof(gw_adapter_info), 0, NULL, 0, NULL, 0, 0, 0, 0, 0, 0}

/* All adapters that have a name, ordered by it. */
GW_API GW_MUST_USE gw_status gw_adapter_list(const gw_engine *engine, gw_adapters **list, gw_error **error GW_OPTIONAL);

/* The adapter of this name, as a list of one. */
GW_API GW_MUST_USE gw_status gw_adapter_describe(const gw_engine *engine, const char *name, size_t name_size,
                                                 gw_adapters **list, gw_error **error GW_OPTIONAL);

/* How many there are; 0 for NULL. */
GW_API size_t gw_adapters_count(const gw_adapters *list);

/* What is known of one of them. GW_ERR_NOT_FOUND from gw_adapters_count on. */
GW_API GW_MUST_USE gw_status gw_adapters_get(const gw_adapters *list, size_t index, gw_adapter_info *info);

GW_API void gw_adapters_free(gw_adapters **list);

/* --------------------------------------------------------------------------------------------------------- Requests */

typedef struct gw_text {
    const char *data;
    size_t size;
} gw_text;

/* One message of a conversation. */
typedef struct gw_message {
    const char *role; /* Such as "system", "user", "assistant". */
    size_t role_size;
    const char *content; /* Special tokens in it are text like any other. */
    size_t content_size;
} gw_message;

/* An adapter of a request, and how much of it: 1 is the adapter as it was trained, 0 nothing, below 0 its opposite. */
typedef struct gw_use {
    const char *name;
    size_t name_size;
    float weight;
    uint32_t reserved; /* 0 */
} gw_use;

/* A number that is added to a token's logit before it competes; -INFINITY bans the token. */
typedef struct gw_logit_bias {
    uint32_t token;
    float bias;
} gw_logit_bias;

/* A token and the natural logarithm of its probability. */
typedef struct gw_logprob {
    uint32_t token;
    float logprob;
} gw_logprob;

/* What happened to a request. Later versions may have kinds that are not listed here. */
enum {
    GW_EVENT_TOKEN = 1,    /* A token of the answer. */
    GW_EVENT_FINISHED = 2, /* The answer ended, for the reason `finish`. Nothing follows. */
    GW_EVENT_FAILED = 3    /* It could not go on, for the reason `status` and `message`. Nothing follows. */
};
enum {
    GW_FINISH_STOP = 1,      /* The model, or one of stop_tokens, ended the answer. */
    GW_FINISH_STOP_TEXT = 2, /* One of `stops` occurred. */
    GW_FINISH_LENGTH = 3,    /* As long as was allowed. */
    GW_FINISH_CANCELLED = 4  /* By gw_cancel or a callback. */
};

/* Read it, do not make it: the library's struct_size says which fields there are. */
typedef struct gw_event {
    uint32_t struct_size;
    int32_t kind;     /* GW_EVENT_... */
    uint64_t request; /* The id that gw_submit gave. */
    /* What became certain of the text with this event: whole characters, and nothing that may yet become a stop text. The
     * pieces of all events, put together, are the answer. */
    const char *text;
    size_t text_size;
    uint32_t token;  /* GW_EVENT_TOKEN */
    int32_t finish;  /* GW_EVENT_FINISHED: GW_FINISH_... */
    float logprob;   /* With GW_REQUEST_LOGPROBS: of `token`, under the model's own distribution. */
    gw_status status; /* GW_EVENT_FAILED */
    const gw_logprob *top; /* With top_logprobs: the likeliest tokens, likeliest first. */
    size_t top_count;
    const float *logits; /* With GW_REQUEST_LOGITS: what the token was chosen from, before temperature and penalties. */
    size_t logits_count;
    const char *message; /* GW_EVENT_FAILED: what happened, for people. */
    size_t message_size;
} gw_event;

/* Hears the events of a request, in order, one at a time, on whichever thread is inside of gw_step or gw_poll. The
 * event lives until this returns. Non-zero cancels the request: GW_EVENT_FINISHED follows. */
typedef int32_t (*gw_event_fn)(void *user, const gw_event *event);

#define GW_REQUEST_IGNORE_EOS UINT32_C(1) /* Go on after the model's own end-of-answer tokens. */
#define GW_REQUEST_LOGPROBS UINT32_C(2)   /* Report the log-probability of each token. */
#define GW_REQUEST_LOGITS UINT32_C(4)     /* Report the logits that each token was chosen from. */

/* What happens to a request whose sequence fills the model's context, or as much of the KV cache as there can be.
 *
 * GW_CONTEXT_SHIFT: of the tokens behind the first `keep` of the prompt (and behind what adapters put before it) the older
 * half goes. Positions are counted anew, without gaps, and keys and values of all that is left are computed again: the
 * answer goes on as that to a request whose prompt is what is left, equal to the bit; draws go on where they were, and
 * adapters act on what they acted on. It starts again behind requests that wait. */
enum {
    GW_CONTEXT_STOP = 0, /* It ends, with GW_FINISH_LENGTH. */
    GW_CONTEXT_SHIFT = 1 /* Its oldest tokens go, and it goes on. */
};

/* One request. Exactly one of text, tokens, messages and chat_json must be set. Everything it points to is read before
 * gw_submit returns. */
typedef struct gw_request {
    uint32_t struct_size;
    uint32_t flags; /* GW_REQUEST_... */

    const char *text; /* A text to go on with. Special tokens are recognised in it, as completion APIs do. */
    size_t text_size;
    const uint32_t *tokens;
    size_t token_count;
    const gw_message *messages; /* A conversation to be answered, rendered by the model's chat template. */
    size_t message_count;
    /* The same with all that a template may know, as JSON: {"messages": [{"role", "content", "tool_calls", ...}], "tools":
     * [...], "documents": [...], "add_generation_prompt": true, and any further variables of the template}. */
    const char *chat_json;
    size_t chat_json_size;

    const gw_use *adapters; /* That answer it, in order; none: the base model. */
    size_t adapter_count;
    const gw_text *stops; /* Texts that end the answer; they are not part of it. */
    size_t stop_count;
    const uint32_t *stop_tokens; /* Tokens that end the answer, besides the model's own. */
    size_t stop_token_count;
    const gw_logit_bias *logit_bias;
    size_t logit_bias_count;

    /* Most tokens of the answer. 0: as many as the context and the KV cache hold. A request starts once the cache has room
     * for this many, so a limit lets more requests run at once. */
    uint64_t max_tokens;
    uint64_t seed;            /* What all draws depend on. */
    float temperature;        /* 0: the likeliest token. 1: the model's distribution. */
    uint32_t top_k;           /* How many of the likeliest tokens stay. 0: all. */
    float top_p;              /* The share of the probability that the likeliest tokens must reach. 0: all. */
    float min_p;              /* The least probability, as a share of the likeliest token's. 0: all. */
    float repetition_penalty; /* Divides positive and multiplies negative logits of repeated tokens. 0: 1, none. */
    float presence_penalty;   /* Subtracted from logits of repeated tokens. */
    float frequency_penalty;  /* Subtracted from logits of repeated tokens for each time. */
    uint32_t penalty_last_n;  /* How many of the last tokens count as repeated. 0: 64. UINT32_MAX: all. */
    uint32_t top_logprobs;    /* How many of the likeliest tokens GW_REQUEST_LOGPROBS reports. */
    uint32_t context;         /* GW_CONTEXT_... */

    const char *grammar; /* GW_ERR_UNSUPPORTED in this version. */
    size_t grammar_size;

    gw_event_fn on_event; /* NULL: events wait for gw_poll. */
    void *user;
    gw_drop_fn drop; /* May be NULL. Called after the last event; without on_event, before gw_submit returns. */

    uint64_t keep; /* GW_CONTEXT_SHIFT: how many of the prompt's tokens always stay. */
} gw_request;

#define GW_REQUEST_INIT \
    {sizeof(gw_request), 0, NULL, 0, NULL, 0, NULL, 0, NULL, 0, NULL, 0, NULL, 0, NULL, 0, NULL, 0, \
     0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, NULL, 0, NULL, NULL, NULL, 0}

/* Sets all fields to their defaults: what GW_REQUEST_INIT does, for languages without macros. */
GW_API GW_MUST_USE gw_status gw_request_init(gw_request *request, size_t size);

/* Accepts a request, from any thread, also while another one steps. `id` identifies it: not 0, never used again by
 * this engine. Refused are adapters that are not loaded, a prompt that is empty, longer than the context or not the
 * model's, options without a meaning, and what the KV cache could never hold (GW_ERR_BUDGET). */
GW_API GW_MUST_USE gw_status gw_submit(const gw_engine *engine, const gw_request *request, uint64_t *id GW_OPTIONAL,
                                       gw_error **error GW_OPTIONAL);

/* Ends a request before its time, from any thread; its last event comes from the next step. A step in progress that
 * is mostly its work is given up between halves of layers, and between parts of a long attention. GW_ERR_NOT_FOUND
 * if it has ended. */
GW_API GW_MUST_USE gw_status gw_cancel(const gw_engine *engine, uint64_t id, gw_error **error GW_OPTIONAL);

/* Runs one forward pass over everything that is ready, and calls the callbacks of what followed; events of requests
 * without one wait for gw_poll. If another thread steps, waits for its turn first; if there is nothing to compute
 * but another thread is calling callbacks, waits for those. Sets `live` to 1 while any request has not ended or its
 * callback has not heard so, else to 0: a loop over gw_step ends with it. (In a callback, to 0 when there is nothing
 * more to compute.) Out of memory: no request lost anything, and the next call tries again. */
GW_API GW_MUST_USE gw_status gw_step(const gw_engine *engine, int32_t *live GW_OPTIONAL, gw_error **error GW_OPTIONAL);

/* The next event of one request, or, with id 0, of any that has no callback. If none waits, steps until there is
 * one; if another thread steps or there is nothing to do, waits for an event or a request to do something for. After
 * timeout_ms, at the latest when the step that it is in ends, `event` is set to NULL and the status is GW_OK; 0
 * takes what waits and computes nothing. With GW_FOREVER it sleeps for as long as nobody submits anything: count
 * what you wait for. GW_ERR_NOT_FOUND if no request of this id has an event to come; GW_ERR_CANCELLED if a callback
 * closed the engine. Free the event with gw_event_free. */
GW_API GW_MUST_USE gw_status gw_poll(const gw_engine *engine, uint64_t id, uint32_t timeout_ms, gw_event **event,
                                     gw_error **error GW_OPTIONAL);

GW_API void gw_event_free(gw_event **event);

/* ----------------------------------------------------------------------------------------------------------- States */

/* A request as it was between two tokens, in bytes, to go on later, here or in another process: its tokens, how they are
 * chosen, keys and values, and its adapters by what they hold. It begins with a version and ends with a checksum. */
typedef struct gw_state gw_state;

/* Saves a request that waits or runs; it goes on. Waits for a step in progress. What followed from steps before is part of
 * it, also where gw_poll has yet to tell: take those events too. GW_ERR_NOT_FOUND if it has ended. */
GW_API GW_MUST_USE gw_status gw_state_save(const gw_engine *engine, uint64_t id, gw_state **state,
                                           gw_error **error GW_OPTIONAL);

/* Its bytes. They live as long as the state; NULL for NULL. */
GW_API const void *gw_state_data(const gw_state *state, size_t *size GW_OPTIONAL);

/* Writes them to a file that nobody else writes: whole, in place of what is there, or not at all. They are on the disk when this returns. Uses the
 * name with ".partial" behind it meanwhile; what has that name is overwritten. */
GW_API GW_MUST_USE gw_status gw_state_write(const gw_state *state, const char *path, size_t path_size,
                                            gw_error **error GW_OPTIONAL);

GW_API void gw_state_free(gw_state **state);

/* Accepts a request that was saved, from a source of one file with what gw_state_data gave: its next event is the one that
 * followed there, equal to the bit, and its text goes on where the events before ended. `on_event`, `user`, `drop` and
 * `id` as in gw_submit. Its adapters must be loaded, under any names: what they hold counts. Bytes that were changed,
 * cut, or made by another version, another base, format of keys and values or content of an adapter: GW_ERR_FORMAT, and
 * nothing of it runs; GW_ERR_BUDGET if the KV cache could never hold it. */
GW_API GW_MUST_USE gw_status gw_state_resume(const gw_engine *engine, const gw_source *state,
                                             gw_event_fn on_event GW_OPTIONAL, void *user GW_OPTIONAL,
                                             gw_drop_fn drop GW_OPTIONAL, uint64_t *id GW_OPTIONAL,
                                             gw_error **error GW_OPTIONAL);

/* ------------------------------------------------------------------------------------------------- Tokens and
 * logits */

/* The tokens that a request's prompt becomes (its other fields do not matter). Writes them to `tokens` if they fit
 * `capacity`, and their number to `count` in any case: with capacity 0 that is all. GW_ERR_INVALID_ARG if they do
 * not fit another capacity. */
GW_API GW_MUST_USE gw_status gw_prompt_tokens(const gw_engine *engine, const gw_request *request,
                                              uint32_t *tokens GW_OPTIONAL, size_t capacity, size_t *count,
                                              gw_error **error GW_OPTIONAL);

/* The text of some tokens, special ones included. `text`, `capacity` and `size` as in gw_prompt_tokens; no NUL is
 * added. */
GW_API GW_MUST_USE gw_status gw_detokenize(const gw_engine *engine, const uint32_t *tokens, size_t token_count,
                                           char *text GW_OPTIONAL, size_t capacity, size_t *size,
                                           gw_error **error GW_OPTIONAL);

/* The logits at every position of a sequence under some adapters, computed now, apart from all requests, with keys
 * and values in f32. Writes token_count rows of gw_engine_info.vocab values (more where an adapter has tokens of its
 * own: the error for too few says how many); `capacity` counts values. Waits for a step in progress, and steps wait for it: it cannot be cancelled. */
GW_API GW_MUST_USE gw_status gw_logits(const gw_engine *engine, const uint32_t *tokens, size_t token_count,
                                       const gw_use *adapters GW_OPTIONAL, size_t adapter_count, float *logits,
                                       size_t capacity, gw_error **error GW_OPTIONAL);

#ifdef __cplusplus
}
#endif

#endif
