/* Makes LoRAs up, for the examples that need many: small ones of q_proj, of random numbers.
 *
 *     loras MODEL FOLDER COUNT
 *
 * Writes FOLDER/0, FOLDER/1 and so on, each as PEFT does. They fit models whose q_proj is as wide as the model. */
#define _POSIX_C_SOURCE 200809L
#include <graftwork.h>

#include <stdio.h>
#include <stdlib.h>
#include <sys/stat.h>

enum { RANK = 4 };

/* Prints why a call failed, and frees the error. Says whether it failed. */
static int failed(gw_status status, gw_error **error) {
    if (status == GW_OK) return 0;
    fprintf(stderr, "loras: %s: %s\n", gw_status_name(status), *error ? gw_error_message(*error, NULL) : "");
    gw_error_free(error);
    return 1;
}

/* Opens a file of a folder. */
static FILE *create(const char *folder, const char *name) {
    char path[4096];
    const int size = snprintf(path, sizeof path, "%s/%s", folder, name);
    return size > 0 && (size_t)size < sizeof path ? fopen(path, "wb") : NULL;
}

static int write_config(const char *folder) {
    FILE *file = create(folder, "adapter_config.json");
    if (!file) return 1;
    fprintf(file, "{\"peft_type\": \"LORA\", \"r\": %d, \"lora_alpha\": %d, \"target_modules\": [\"q_proj\"]}\n", RANK, RANK);
    return fclose(file);
}

/* Safetensors: the size of a header in JSON, in 8 bytes, the header, and the numbers. */
static int write_weights(const char *folder, const gw_engine_info *model, uint32_t state) {
    const size_t count = (size_t)RANK * model->hidden, room = (size_t)model->layers * 320 + 2;
    FILE *file = create(folder, "adapter_model.safetensors");
    char *header = malloc(room);
    size_t size = 0;
    for (unsigned i = 0; header && i < 2 * model->layers; i++) {
        const unsigned rows = i % 2 ? model->hidden : RANK, columns = i % 2 ? RANK : model->hidden;
        size += (size_t)snprintf(header + size, room - size,
                                 "%c\"base_model.model.model.layers.%u.self_attn.q_proj.lora_%c.weight\":{\"dtype\":\"F32\","
                                 "\"shape\":[%u,%u],\"data_offsets\":[%zu,%zu]}",
                                 i ? ',' : '{', i / 2, i % 2 ? 'B' : 'A', rows, columns, 4 * i * count, 4 * (i + 1) * count);
    }
    if (file && header) {
        header[size++] = '}';
        for (int i = 0; i < 8; i++) fputc((int)((uint64_t)size >> 8 * i & 0xff), file);
        fwrite(header, 1, size, file);
        for (size_t i = 0; i < 2 * model->layers * count; i++) {
            state = state * 1664525u + 1013904223u;
            const float number = (float)(state >> 8) / 33554432.0f - 0.25f; /* From -0.25 to 0.25. */
            fwrite(&number, sizeof number, 1, file);
        }
    }
    free(header);
    return !file || fclose(file) || size == 0;
}

int main(int argc, char **argv) {
    gw_source *source = NULL;
    gw_engine *engine = NULL;
    gw_error *error = NULL;
    gw_engine_info model = GW_ENGINE_INFO_INIT;
    int status = EXIT_FAILURE;

    if (argc != 4) {
        fprintf(stderr, "usage: loras MODEL FOLDER COUNT\n");
        return EXIT_FAILURE;
    }
    if (failed(gw_source_path(argv[1], GW_NUL, 0, &source, &error), &error)) goto end;
    if (failed(gw_engine_open(source, NULL, &engine, &error), &error)) goto end;
    if (failed(gw_engine_describe(engine, &model, &error), &error)) goto end;
    for (long i = 0; i < atol(argv[3]); i++) {
        char folder[2048];
        snprintf(folder, sizeof folder, "%s/%ld", argv[2], i);
        if (mkdir(folder, 0777) || write_config(folder) || write_weights(folder, &model, (uint32_t)i * 2654435761u)) {
            perror(folder);
            goto end;
        }
    }
    status = EXIT_SUCCESS;

end:
    gw_engine_close(&engine);
    gw_source_free(&source);
    return status;
}
