/* A life, with the answers of the golden files. */
#include "life.h"

/* The numbers of one tensor of a safetensors file. */
static void *tensor(const char *name, const char *key, size_t size) {
    char path[4096], named[64];
    path_of(name, path);
    FILE *file = fopen(path, "rb");
    CHECK(file != NULL);
    uint64_t length = 0;
    CHECK(fread(&length, sizeof length, 1, file) == 1 && length < 100000);
    char *json = calloc(1, length + 1);
    CHECK(json != NULL && fread(json, 1, length, file) == length);
    snprintf(named, sizeof named, "\"%s\"", key);
    const char *offsets = strstr(json, named);
    CHECK(offsets != NULL && (offsets = strstr(offsets, "data_offsets")) != NULL && (offsets = strchr(offsets, '[')));
    unsigned long from = 0, to = 0;
    CHECK(sscanf(offsets, "[%lu,%lu]", &from, &to) == 2 && to - from == size);
    void *data = malloc(size);
    CHECK(data != NULL && fseek(file, (long)(8 + length + from), SEEK_SET) == 0 && fread(data, size, 1, file) == 1);
    fclose(file);
    free(json);
    return data;
}

/* Logits against those of another implementation in f32: sums of up to 352 products in another order through 3
 * layers, so 1e-3 of logits of some units. */
static void golden(const gw_engine *engine, const char *name) {
    enum { LENGTH = 24, ALL = LENGTH * VOCAB };
    char path[64];
    snprintf(path, sizeof path, "%s/expected.safetensors", name);
    uint32_t *tokens = tensor(path, "tokens", 2 * LENGTH * sizeof *tokens);
    float *expected = tensor(path, "logits", 2 * ALL * sizeof *expected), *found = malloc(ALL * sizeof *found);
    CHECK(found != NULL);
    gw_use use = {name, GW_NUL, 1.0f, 0};
    const size_t adapters = strcmp(name, "base") != 0;
    if (adapters) load(engine, name, name);
    for (size_t sequence = 0; sequence < 2; sequence++) {
        WORKS(gw_logits(engine, tokens + sequence * LENGTH, LENGTH, &use, adapters, found, ALL, &error));
        for (size_t i = 0; i < ALL; i++)
            if (!(fabsf(found[i] - expected[sequence * ALL + i]) < 1e-3f))
                FAIL("%s: logit %zu of sequence %zu: %g, %g", name, i, sequence, found[i], expected[sequence * ALL + i]);
        /* What is chosen after a prefix is the largest of its last logits. */
        gw_request request = ask(tokens + sequence * LENGTH, LENGTH, 1);
        request.adapters = &use;
        request.adapter_count = adapters;
        const answer chosen = answer_to(engine, &request);
        size_t best = 0;
        for (size_t i = 0; i < VOCAB; i++)
            if (expected[sequence * ALL + ALL - VOCAB + i] > expected[sequence * ALL + ALL - VOCAB + best]) best = i;
        EQUAL(best, chosen.tokens[0]);
    }
    free(tokens);
    free(expected);
    free(found);
}

int main(int count, char **arguments) {
    begin(count, arguments);
    EQUAL(GW_ABI_VERSION, gw_abi_version());
    CHECK(gw_version()[0] >= '0' && gw_version()[0] <= '9');
    life();
    gw_engine *engine = open_small();
    golden(engine, "base");
    golden(engine, "lora");
    golden(engine, "lora_all");
    golden(engine, "lora_bias");
    gw_engine_close(&engine);
    return 0;
}
