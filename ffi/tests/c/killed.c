/* A process that saves its request after each token is killed in the middle of its answer. Another one goes on from the
 * file: with the tokens, texts and logits of a run that nobody interrupted, equal to the bit.
 *
 *     killed FOLDER                 does all this, by running itself as
 *     killed FOLDER whole           answers, and writes each event to stdout
 *     killed FOLDER saves FILE      answers slowly, saving after each token
 *     killed FOLDER resumes FILE    goes on, and writes each event to stdout
 *     killed FOLDER refuses FILE    does not go on, because something is not what it was */
#include "check.h"
#include <signal.h>
#include <sys/wait.h>
#include <time.h>

enum { PROMPT = 100, LENGTH = 48 };

static uint64_t submit(const gw_engine *engine) {
    static uint32_t tokens[PROMPT];
    const gw_use use = {"mine", GW_NUL, 1.0f, 0};
    prompt(tokens, PROMPT, 9);
    gw_request request = ask(tokens, PROMPT, LENGTH);
    request.flags |= GW_REQUEST_LOGITS;
    request.adapters = &use;
    request.adapter_count = 1;
    request.temperature = 0.7f;
    request.seed = 5;
    uint64_t id = 0;
    WORKS(gw_submit(engine, &request, &id, &error));
    return id;
}

/* Writes what an event says, without the id. Of one length for each kind, so that the last of many are found. */
static void put(const gw_event *event) {
    struct {
        int32_t kind, finish;
        uint32_t token, text_size;
        char text[64];
        float logits[VOCAB];
    } record;
    memset(&record, 0, sizeof record);
    record.kind = event->kind;
    record.finish = event->finish;
    record.token = event->token;
    record.text_size = (uint32_t)event->text_size;
    CHECK(event->text_size < sizeof record.text);
    memcpy(record.text, event->text, event->text_size);
    if (event->logits_count) memcpy(record.logits, event->logits, sizeof record.logits);
    CHECK(fwrite(&record, sizeof record, 1, stdout) == 1);
}

static void put_all(const gw_engine *engine, uint64_t id) {
    for (int last = 0; !last;) {
        gw_event *event = NULL;
        WORKS(gw_poll(engine, id, GW_FOREVER, &event, &error));
        put(event);
        last = event->kind != GW_EVENT_TOKEN;
        gw_event_free(&event);
    }
}

static void save_each(const gw_engine *engine, const char *path) {
    const uint64_t id = submit(engine);
    for (;;) {
        gw_event *event = NULL;
        WORKS(gw_poll(engine, id, GW_FOREVER, &event, &error));
        CHECK(event->kind == GW_EVENT_TOKEN);
        gw_event_free(&event);
        gw_state *state = NULL;
        WORKS(gw_state_save(engine, id, &state, &error));
        WORKS(gw_state_write(state, path, GW_NUL, &error));
        gw_state_free(&state);
        CHECK(putchar('.') == '.' && fflush(stdout) == 0);
        nanosleep(&(struct timespec){0, 2000000}, NULL);
    }
}

/* A base that differs in one bit of a weight. */
static gw_engine *open_other(void) {
    gw_source *model = NULL, *file = NULL;
    static const char *const names[] = {"config.json", "generation_config.json", "tokenizer.json", "tokenizer_config.json"};
    char name[64], path[4096];
    WORKS(gw_source_directory(&model, &error));
    for (int i = 0; i < 4; i++) {
        snprintf(name, sizeof name, "model/%s", names[i]);
        file = source_of(name);
        WORKS(gw_source_add(model, names[i], GW_NUL, file, &error));
        gw_source_free(&file);
    }
    path_of("model/model.safetensors", path);
    FILE *stream = fopen(path, "rb");
    CHECK(stream && fseek(stream, 0, SEEK_END) == 0);
    const size_t size = (size_t)ftell(stream);
    unsigned char *bytes = malloc(size);
    rewind(stream);
    CHECK(bytes && fread(bytes, 1, size, stream) == size);
    fclose(stream);
    bytes[size - 4] ^= 1; /* The lowest bit of the last number. */
    WORKS(gw_source_memory(bytes, size, GW_SOURCE_COPY, NULL, NULL, &file, &error));
    WORKS(gw_source_add(model, "model.safetensors", GW_NUL, file, &error));
    free(bytes);
    gw_engine *engine = NULL;
    gw_engine_options options = GW_ENGINE_OPTIONS_INIT;
    options.threads = 1;
    WORKS(gw_engine_open(model, &options, &engine, &error));
    gw_source_free(&file);
    gw_source_free(&model);
    return engine;
}

static void refuse(const gw_engine *engine, const char *path) {
    gw_source *state = NULL;
    WORKS(gw_source_path(path, GW_NUL, 0, &state, &error));
    FAILS(GW_ERR_FORMAT, "adapter", gw_state_resume(engine, state, NULL, NULL, NULL, NULL, &error));
    load(engine, "mine", "lora");
    FAILS(GW_ERR_FORMAT, "adapter", gw_state_resume(engine, state, NULL, NULL, NULL, NULL, &error));
    gw_engine *other = open_other();
    load(other, "mine", "lora_all");
    FAILS(GW_ERR_FORMAT, "base", gw_state_resume(other, state, NULL, NULL, NULL, NULL, &error));
    gw_engine_close(&other);
    gw_source_free(&state);
}

static void act(const char *what, const char *path) {
    gw_engine *engine = open_small();
    if (strcmp(what, "refuses") == 0) {
        refuse(engine, path);
    } else if (strcmp(what, "resumes") == 0) {
        gw_source *state = NULL;
        uint64_t id = 0;
        load(engine, "another name", "lora_all");
        WORKS(gw_source_path(path, GW_NUL, 0, &state, &error));
        WORKS(gw_state_resume(engine, state, NULL, NULL, NULL, &id, &error));
        gw_source_free(&state);
        put_all(engine, id);
    } else {
        load(engine, "mine", "lora_all");
        if (strcmp(what, "saves") == 0) save_each(engine, path);
        put_all(engine, submit(engine));
    }
    CHECK(fflush(stdout) == 0);
    gw_engine_close(&engine);
}

/* Runs this program with its stdout in a pipe. */
static pid_t start(const char *what, const char *path, int *from) {
    int ends[2];
    CHECK(pipe(ends) == 0);
    const pid_t child = fork();
    CHECK(child >= 0);
    if (child == 0) {
        dup2(ends[1], 1);
        close(ends[0]);
        close(ends[1]);
        execl("/proc/self/exe", "killed", folder, what, path, (char *)NULL);
        _exit(127);
    }
    close(ends[1]);
    *from = ends[0];
    return child;
}

/* What it writes until it ends, which must be well. */
static size_t output_of(const char *what, const char *path, char *to, size_t room) {
    int from = -1, status = 0;
    const pid_t child = start(what, path, &from);
    size_t size = 0;
    for (ssize_t got; (got = read(from, to + size, room - size)) > 0;) size += (size_t)got;
    close(from);
    CHECK(waitpid(child, &status, 0) == child);
    if (status != 0) FAIL("%s ended with %#x", what, (unsigned)status);
    return size;
}

int main(int count, char **arguments) {
    begin(count, arguments);
    if (count > 2) {
        act(arguments[2], count > 3 ? arguments[3] : "");
        return 0;
    }
    char path[64], partial[80];
    snprintf(path, sizeof path, "/tmp/graftwork-killed-%ld", (long)getpid());
    snprintf(partial, sizeof partial, "%s.partial", path);
    static char whole[1 << 18], rest[1 << 18];
    const size_t size = output_of("whole", "", whole, sizeof whole);
    CHECK(size > 0 && size % (LENGTH + 1) == 0);
    const size_t record = size / (LENGTH + 1);
    for (size_t after = 1; after < LENGTH - 8; after += 13) {
        int from = -1, status = 0;
        char byte = 0;
        const pid_t child = start("saves", path, &from);
        for (size_t i = 0; i < after; i++) CHECK(read(from, &byte, 1) == 1);
        CHECK(kill(child, SIGKILL) == 0 && waitpid(child, &status, 0) == child);
        close(from);
        CHECK(WIFSIGNALED(status) && WTERMSIG(status) == SIGKILL);

        /* What is left of the answer: no more than what was not told, all of it as it was. */
        const size_t left = output_of("resumes", path, rest, sizeof rest);
        CHECK(left > 0 && left % record == 0 && left <= size - after * record);
        CHECK(memcmp(whole + size - left, rest, left) == 0);
        EQUAL(0, output_of("refuses", path, rest, sizeof rest));
        CHECK(unlink(path) == 0);
        unlink(partial);
    }
    return 0;
}
