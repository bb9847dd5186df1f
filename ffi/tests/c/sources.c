/* Every way for a file to come in, for the model's and an adapter's; what becomes of memory that is lent. */
#include "check.h"

enum { PATH, PATH_COPY, FD, FD_COPY, LENT, COPIED, READER, WAYS };

/* A file in memory. */
typedef struct {
    char *data;
    size_t size;
    atomic_int drops;
} file;

static void read_file(file *f, const char *name) {
    char path[4096];
    path_of(name, path);
    memset(f, 0, sizeof *f);
    FILE *stream = fopen(path, "rb");
    CHECK(stream != NULL && fseek(stream, 0, SEEK_END) == 0);
    f->size = (size_t)ftell(stream);
    rewind(stream);
    f->data = malloc(f->size);
    CHECK(f->data != NULL && fread(f->data, 1, f->size, stream) == f->size);
    fclose(stream);
}

static void drop_file(void *user) { atomic_fetch_add(&((file *)user)->drops, 1); }

static int32_t read_from(void *user, uint64_t offset, void *buffer, size_t size) {
    const file *f = user;
    CHECK(offset <= f->size && size <= f->size - offset && f->drops == 0);
    memcpy(buffer, f->data + offset, size);
    return 0;
}

/* The descriptor of a file that has another one within it, from byte `before` on. */
static int embedded(const file *f, size_t before) {
    FILE *stream = tmpfile();
    CHECK(stream != NULL);
    for (size_t i = 0; i < before; i++) fputc((int)(i * 37 % 251), stream);
    CHECK(fwrite(f->data, 1, f->size, stream) == f->size);
    fputs("and what follows", stream);
    CHECK(fflush(stream) == 0);
    const int fd = dup(fileno(stream));
    fclose(stream);
    return fd;
}

/* One file of a folder, in one of the ways. */
static gw_source *source_in(int way, const char *name, file *f) {
    gw_source *source = NULL;
    char path[4096];
    path_of(name, path);
    read_file(f, name);
    if (way == PATH || way == PATH_COPY) {
        WORKS(gw_source_path(path, strlen(path), way == PATH_COPY ? GW_SOURCE_COPY : 0, &source, &error));
    } else if (way == FD || way == FD_COPY) {
        const size_t before = way == FD ? 5003 : 8192;
        const int fd = embedded(f, before);
        const uint32_t flags = way == FD_COPY ? GW_SOURCE_COPY : 0;
        WORKS(gw_source_fd(fd, before, f->size, flags, &source, &error));
        CHECK(close(fd) == 0);
    } else if (way == LENT) {
        WORKS(gw_source_memory(f->data, f->size, 0, drop_file, f, &source, &error));
        EQUAL(0, f->drops);
    } else if (way == COPIED) {
        WORKS(gw_source_memory(f->data, f->size, GW_SOURCE_COPY, drop_file, f, &source, &error));
        EQUAL(1, f->drops);
        memset(f->data, 0xee, f->size);
    } else {
        gw_reader reader = GW_READER_INIT;
        reader.length = f->size;
        reader.read = read_from;
        reader.user = f;
        reader.drop = drop_file;
        WORKS(gw_source_reader(&reader, &source, &error));
        EQUAL(1, f->drops);
        memset(f->data, 0xee, f->size);
    }
    return source;
}

/* A directory whose files come in one way. */
static gw_source *directory_in(int way, const char *of, const char *const *names, size_t count, file *files) {
    gw_source *directory = NULL;
    WORKS(gw_source_directory(&directory, &error));
    for (size_t i = 0; i < count; i++) {
        char name[64];
        snprintf(name, sizeof name, "%s/%s", of, names[i]);
        gw_source *source = source_in(way, name, &files[i]);
        WORKS(gw_source_add(directory, names[i], GW_NUL, source, &error));
        FAILS(GW_ERR_CONFLICT, names[i], gw_source_add(directory, names[i], GW_NUL, source, &error));
        gw_source_free(&source);
    }
    return directory;
}

static const char *const model_files[] = {"config.json", "generation_config.json", "model.safetensors", "tokenizer.json",
                                          "tokenizer_config.json"};
static const char *const adapter_files[] = {"adapter_config.json", "adapter_model.safetensors"};

/* The same answer, whatever way the files came in; and what was lent is given back once, not before the end. */
static void ways(const answer expected[2]) {
    for (int way = 0; way < WAYS; way++) {
        file files[5], others[2];
        gw_source *model = directory_in(way, "model", model_files, 5, files);
        gw_source *lora = directory_in(way, "lora_all", adapter_files, 2, others);
        gw_engine_options options = GW_ENGINE_OPTIONS_INIT;
        options.threads = 2;
        gw_memory plan = GW_MEMORY_INIT, memory = GW_MEMORY_INIT;
        gw_engine *engine = NULL;
        WORKS(gw_engine_plan(model, &options, &plan, &error));
        WORKS(gw_engine_open(model, &options, &engine, &error));
        WORKS(gw_engine_memory(engine, &memory, &error));
        EQUAL(plan.weights, memory.weights);
        EQUAL(plan.embedding, memory.embedding);
        CHECK(memory.scratch <= plan.scratch);
        WORKS(gw_adapter_load(engine, "x", 1, lora, NULL, &error));
        gw_source_free(&model);
        gw_source_free(&lora);

        uint32_t tokens[20];
        prompt(tokens, 20, 0);
        gw_request request = ask(tokens, 20, 12);
        gw_use use = {"x", 1, 1.0f, 0};
        request.adapters = &use;
        for (size_t adapters = 0; adapters < 2; adapters++) {
            request.adapter_count = adapters;
            const answer found = answer_to(engine, &request);
            if (!same(&found, &expected[adapters])) FAIL("another answer in way %d", way);
        }
        gw_engine_close(&engine);
        for (size_t i = 0; i < 7; i++) {
            file *f = i < 5 ? &files[i] : &others[i - 5];
            EQUAL(way >= LENT, f->drops);
            free(f->data);
        }
    }
}

static int32_t read_nothing(void *user, uint64_t offset, void *buffer, size_t size) {
    (void)user, (void)offset, (void)buffer, (void)size;
    return 1;
}

/* What a call refuses stays the caller's. */
static void refusals(void) {
    file f;
    read_file(&f, "model/config.json");
    gw_source *source = NULL, *made = NULL;
    FAILS(GW_ERR_INVALID_ARG, "flags", gw_source_memory(f.data, f.size, 2, drop_file, &f, &source, &error));
    FAILS(GW_ERR_INVALID_ARG, "flags", gw_source_path("x", 1, 4, &source, &error));
    FAILS(GW_ERR_INVALID_ARG, "flags", gw_source_fd(0, 0, 0, 1u << 31, &source, &error));
    gw_reader reader = GW_READER_INIT;
    reader.length = f.size;
    reader.user = &f;
    reader.drop = drop_file;
    FAILS(GW_ERR_INVALID_ARG, "read", gw_source_reader(&reader, &source, &error));
    reader.read = read_nothing;
    FAILS(GW_ERR_IO, "", gw_source_reader(&reader, &source, &error));
    reader.read = read_from;
    reader.length = UINT64_MAX; /* Before anything is read: no such memory. */
    FAILS(GW_ERR_OUT_OF_MEMORY, "", gw_source_reader(&reader, &source, &error));
    EQUAL(0, f.drops);

    const int fd = embedded(&f, 10);
    FAILS(GW_ERR_INVALID_ARG, "", gw_source_fd(-1, 0, 0, 0, &source, &error));
    FAILS(GW_ERR_INVALID_ARG, "", gw_source_fd(fd, 0, 1 << 20, 0, &source, &error));
    FAILS(GW_ERR_INVALID_ARG, "", gw_source_fd(fd, 1 << 20, 0, 0, &source, &error));
    FAILS(GW_ERR_INVALID_ARG, "", gw_source_fd(fd, UINT64_MAX, UINT64_MAX, 0, &source, &error));
    /* A descriptor may be shared with others, who read through it too. */
    CHECK(lseek(fd, 7, SEEK_SET) == 7);
    WORKS(gw_source_fd(fd, 10, 20, GW_SOURCE_COPY, &source, &error));
    EQUAL(7, lseek(fd, 0, SEEK_CUR));
    gw_source_free(&source);
    close(fd);
    CHECK(!source);

    /* Nothing at no address is a file too, of no model. */
    WORKS(gw_source_memory(NULL, 0, 0, drop_file, &f, &source, &error));
    FAILS(GW_ERR_FORMAT, "", gw_engine_open(source, NULL, &(gw_engine *){NULL}, &error));
    gw_source_free(&source);
    EQUAL(1, f.drops);

    /* A file is no directory, and a directory no file. */
    WORKS(gw_source_memory(f.data, f.size, GW_SOURCE_COPY, NULL, NULL, &source, &error));
    WORKS(gw_source_directory(&made, &error));
    FAILS(GW_ERR_INVALID_ARG, "directory", gw_source_add(source, "config.json", GW_NUL, source, &error));
    FAILS(GW_ERR_INVALID_ARG, "file", gw_source_add(made, "config.json", GW_NUL, made, &error));
    WORKS(gw_source_add(made, "config.json", GW_NUL, source, &error));

    /* Half a model, no model, and none at all. */
    gw_engine *engine = NULL;
    gw_memory memory = GW_MEMORY_INIT;
    CHECK(gw_engine_open(made, NULL, &engine, &error) != GW_OK && error && !engine);
    gw_error_free(&error);
    CHECK(gw_engine_plan(source, NULL, &memory, &error) == GW_ERR_FORMAT && error);
    gw_error_free(&error);
    FAILS(GW_ERR_FORMAT, "", gw_engine_open(source, NULL, &engine, &error));
    gw_source_free(&source);
    gw_source_free(&made);
    source = source_of("no/such/file");
    FAILS(GW_ERR_NOT_FOUND, "no/such/file", gw_engine_open(source, NULL, &engine, &error));
    FAILS(GW_ERR_NOT_FOUND, "no/such/file", gw_engine_plan(source, NULL, &memory, &error));
    engine = open_small();
    FAILS(GW_ERR_NOT_FOUND, "no/such/file", gw_adapter_load(engine, "x", 1, source, NULL, &error));
    gw_source_free(&source);
    source = source_of("model");
    CHECK(gw_adapter_load(engine, "x", 1, source, NULL, &error) != GW_OK && error);
    gw_error_free(&error);
    gw_source_free(&source);
    gw_engine_close(&engine);
    free(f.data);
}

int main(int count, char **arguments) {
    begin(count, arguments);
    refusals();
    gw_engine *engine = open_small();
    uint32_t tokens[20];
    prompt(tokens, 20, 0);
    gw_request request = ask(tokens, 20, 12);
    answer expected[2];
    expected[0] = answer_to(engine, &request);
    load(engine, "x", "lora_all");
    gw_use use = {"x", 1, 1.0f, 0};
    request.adapters = &use;
    request.adapter_count = 1;
    expected[1] = answer_to(engine, &request);
    CHECK(!same(&expected[0], &expected[1]));
    gw_engine_close(&engine);
    ways(expected);
    return 0;
}
