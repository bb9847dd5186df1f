/* An adapter that is loaded, used and unloaded 1,000 times leaves memory as it was. */
#include "check.h"

/* An adapter is 140 KB, and a leak of 50 bytes in each of 500 cycles would show as 25,000. Before that, the list of prefixes
 * that are kept grows until it is full. What the allocator keeps of freed memory is another matter: it rounds up and
 * fragments. */
enum { WARM = 500, ALL = 1000, MOST_ALLOCATED = 16384, MOST_RESIDENT = 2048 /* KB */ };

int main(int count, char **arguments) {
    begin(count, arguments);
    gw_engine *engine = open_small();
    uint32_t tokens[16];
    prompt(tokens, 16, 0);
    const gw_use use = {"x", 1, 1.0f, 0};
    gw_request request = ask(tokens, 16, 4);
    request.adapters = &use;
    request.adapter_count = 1;
    const char *const files[] = {"lora_all", "lora_bias"};
    answer first[2];
    gw_memory memory = GW_MEMORY_INIT;
    long bytes = 0, touched = 0;
    for (int cycle = 0; cycle < ALL; cycle++) {
        if (cycle == WARM) bytes = allocated(), touched = resident();
        load(engine, "x", files[cycle % 2]);
        const answer found = answer_to(engine, &request);
        if (cycle < 2) first[cycle] = found;
        CHECK(same(&found, &first[cycle % 2]));
        WORKS(gw_adapter_unload(engine, "x", 1, &error));
        WORKS(gw_engine_memory(engine, &memory, &error));
        EQUAL(0, memory.adapters);
        EQUAL(0, memory.kv_used);
    }
    CHECK(!same(&first[0], &first[1]));
    bytes = allocated() - bytes;
    if (bytes > MOST_ALLOCATED) FAIL("%ld bytes more are allocated after %d cycles", bytes, ALL - WARM);
    touched = resident() - touched;
    if (touched > MOST_RESIDENT) FAIL("grew by %ld KB in %d cycles", touched, ALL - WARM);
    gw_engine_close(&engine);
    return 0;
}
