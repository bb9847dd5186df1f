/* A life, and errors, without a byte on stdout or stderr, and without a look at the environment. */
#include "life.h"

static atomic_int looks;
static char looked_for[128];

static char *look(const char *name) {
    if (!atomic_fetch_add(&looks, 1)) snprintf(looked_for, sizeof looked_for, "%s", name);
    return NULL;
}

/* In place of the system's, for the library as for all: programs come first when symbols are looked up. */
char *getenv(const char *name) { return look(name); }
char *secure_getenv(const char *name) { return look(name); }

int main(int count, char **arguments) {
    begin(count, arguments);
    const int said = dup(2);
    FILE *out = tmpfile(), *err = tmpfile();
    CHECK(said >= 0 && out && err);
    tell = said;
    dup2(fileno(out), 1);
    dup2(fileno(err), 2);
    atomic_store(&looks, 0);

    life();
    gw_engine *engine = open_small(), *none = NULL;
    gw_source *source = source_of("no/such/file");
    FAILS(GW_ERR_NOT_FOUND, "", gw_engine_open(source, NULL, &none, &error));
    FAILS(GW_ERR_NOT_FOUND, "", gw_adapter_load(engine, "x", 1, source, NULL, &error));
    gw_source_free(&source);
    FAILS(GW_ERR_INVALID_ARG, "request", gw_submit(engine, NULL, NULL, &error));
    gw_engine_close(&engine);

    /* A tokenizer whose normalizer makes the library that reads it panic. */
    source = source_of("hostile");
    gw_request request = GW_REQUEST_INIT;
    request.text = "hello";
    request.text_size = GW_NUL;
    gw_status status = gw_engine_open(source, NULL, &engine, &error);
    if (status == GW_OK) status = gw_submit(engine, &request, NULL, &error);
    CHECK(status == GW_ERR_FORMAT || status == GW_ERR_INVALID_ARG);
    gw_error_free(&error);
    gw_engine_close(&engine);
    gw_source_free(&source);

    fflush(NULL);
    EQUAL(0, lseek(1, 0, SEEK_END));
    EQUAL(0, lseek(2, 0, SEEK_END));
    if (looks) FAIL("looked for %d variables, first %s", looks, looked_for);
    return 0;
}
