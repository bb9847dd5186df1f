/* What the programs share: checks, the small model, and how an answer is had. Every program gets a folder as its first
 * argument: that of the golden adapters, with the model `model` (which has a tokenizer) beside them. */
#ifndef CHECK_H
#define CHECK_H

#include <errno.h>
#include <fcntl.h>
#include <malloc.h>
#include <math.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "graftwork.h"

#define VOCAB 512
#define MOST 64 /* Tokens of an answer. */

/* Where failures are told; -1 once stdout and stderr must stay silent. */
static int tell = 2;
/* What the last call of this thread failed for. */
static _Thread_local gw_error *error = NULL;

#define FAIL(...) (dprintf(tell, "%s:%d: ", __FILE__, __LINE__), dprintf(tell, __VA_ARGS__), dprintf(tell, "\n"), _exit(1))
#define CHECK(condition) ((condition) ? (void)0 : (void)FAIL("expected %s", #condition))
#define EQUAL(expected, found) equal((long long)(expected), (long long)(found), #found, __FILE__, __LINE__)
/* A call that must work, or fail with a status and a message that says `word`. Both give `&error` to the call. */
#define WORKS(call) works((call), #call, __FILE__, __LINE__)
#define FAILS(status, word, call) fails((status), (word), (call), #call, __FILE__, __LINE__)

static inline void equal(long long expected, long long found, const char *what, const char *file, int line) {
    if (expected == found) return;
    dprintf(tell, "%s:%d: %s: expected %lld, found %lld\n", file, line, what, expected, found);
    _exit(1);
}

static inline void works(gw_status status, const char *call, const char *file, int line) {
    if (status == GW_OK && !error) return;
    dprintf(tell, "%s:%d: %s: %s: %s\n", file, line, call, gw_status_name(status),
            error ? gw_error_message(error, NULL) : "(no error)");
    _exit(1);
}

static inline void fails(gw_status expected, const char *word, gw_status status, const char *call, const char *file,
                         int line) {
    const char *message = error ? gw_error_message(error, NULL) : "(no error)";
    if (status != expected || !error || gw_error_code(error) != status || !strstr(message, word)) {
        dprintf(tell, "%s:%d: %s: expected %s about \"%s\", found %s: %s\n", file, line, call, gw_status_name(expected),
                word, gw_status_name(status), message);
        _exit(1);
    }
    gw_error_free(&error);
}

/* ------------------------------------------------------------------------------------------------------- Small model */

static const char *folder;

static inline const char *begin(int count, char **arguments) {
    if (count < 2) FAIL("usage: %s FOLDER", arguments[0]);
    return folder = arguments[1];
}

static inline void path_of(const char *name, char path[4096]) { snprintf(path, 4096, "%s/%s", folder, name); }

static inline gw_source *source_of(const char *name) {
    char path[4096];
    gw_source *source = NULL;
    path_of(name, path);
    WORKS(gw_source_path(path, GW_NUL, 0, &source, &error));
    return source;
}

static inline gw_engine *open_with(const gw_engine_options *options) {
    gw_source *source = source_of("model");
    gw_engine *engine = NULL;
    WORKS(gw_engine_open(source, options, &engine, &error));
    gw_source_free(&source);
    CHECK(!source);
    return engine;
}

static inline gw_engine *open_small(void) {
    gw_engine_options options = GW_ENGINE_OPTIONS_INIT;
    options.threads = 2;
    return open_with(&options);
}

/* Loads the golden adapter `file` under a name, and gives its generation. */
static inline uint64_t load(const gw_engine *engine, const char *name, const char *file) {
    gw_source *source = source_of(file);
    uint64_t generation = 0;
    WORKS(gw_adapter_load(engine, name, GW_NUL, source, &generation, &error));
    gw_source_free(&source);
    return generation;
}

/* Kilobytes of memory that the process has touched. */
static inline long resident(void) {
    long all = 0, touched = 0;
    FILE *file = fopen("/proc/self/statm", "r");
    CHECK(file && fscanf(file, "%ld %ld", &all, &touched) == 2);
    fclose(file);
    return touched * (sysconf(_SC_PAGESIZE) / 1024);
}

/* Bytes that are allocated and not freed. Unlike what is resident, it does not depend on what the allocator keeps. */
static inline long allocated(void) {
    const struct mallinfo2 info = mallinfo2();
    return (long)(info.uordblks + info.hblkhd);
}

/* ----------------------------------------------------------------------------------------------------------- Answers */

typedef struct {
    uint32_t tokens[MOST];
    size_t count;
    char text[16 * MOST];
    size_t text_size;
    int finish; /* GW_FINISH_..., 0 before the end, -1 if it failed. */
} answer;

static inline void prompt(uint32_t *tokens, size_t count, uint32_t seed) {
    for (size_t i = 0; i < count; i++) tokens[i] = 3 + (uint32_t)(i * 89 + 7 + seed * 31) % (VOCAB - 3);
}

static inline gw_request ask(const uint32_t *tokens, size_t count, uint64_t max_tokens) {
    gw_request request = GW_REQUEST_INIT;
    request.tokens = tokens;
    request.token_count = count;
    request.max_tokens = max_tokens;
    request.flags = GW_REQUEST_IGNORE_EOS;
    return request;
}

/* Adds an event to the answer; 1 if it is the last. */
static inline int add_event(answer *to, const gw_event *event) {
    EQUAL(sizeof *event, event->struct_size);
    CHECK(to->finish == 0);
    CHECK(event->request != 0);
    CHECK(event->text != NULL && event->text[event->text_size] == 0);
    CHECK(to->text_size + event->text_size < sizeof to->text);
    memcpy(to->text + to->text_size, event->text, event->text_size + 1);
    to->text_size += event->text_size;
    switch (event->kind) {
    case GW_EVENT_TOKEN:
        CHECK(to->count < MOST && event->token < VOCAB);
        to->tokens[to->count++] = event->token;
        return 0;
    case GW_EVENT_FINISHED: to->finish = event->finish; return 1;
    default: to->finish = -1; return 1;
    }
}

/* All events of a request, by polling. */
static inline answer poll_all(const gw_engine *engine, uint64_t id) {
    answer found;
    memset(&found, 0, sizeof found);
    for (int last = 0; !last;) {
        gw_event *event = NULL;
        WORKS(gw_poll(engine, id, GW_FOREVER, &event, &error));
        CHECK(event != NULL && event->request == id);
        last = add_event(&found, event);
        gw_event_free(&event);
        CHECK(!event);
    }
    return found;
}

static inline answer answer_to(const gw_engine *engine, const gw_request *request) {
    uint64_t id = 0;
    WORKS(gw_submit(engine, request, &id, &error));
    CHECK(id != 0);
    return poll_all(engine, id);
}

static inline int same(const answer *a, const answer *b) {
    return a->count == b->count && memcmp(a->tokens, b->tokens, a->count * sizeof *a->tokens) == 0 &&
           a->finish == b->finish && a->text_size == b->text_size && memcmp(a->text, b->text, a->text_size) == 0;
}

#endif
