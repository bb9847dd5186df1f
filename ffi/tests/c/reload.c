/* Loads a library that is linked with this one, lives, and closes both, 100 times. The library is the second argument;
 * this program itself is linked with neither. What stays in memory (see build.rs) is found again, not loaded once more. */
#include "check.h"
#include <dirent.h>
#include <dlfcn.h>

/* What the loader keeps for each time is some 600 bytes. What the allocator keeps of freed memory depends on which of its
 * arenas the threads find; a leaked engine would be megabytes each time. */
enum { WARM = 10, ALL = 100, MOST_ALLOCATED = 128 * 1024, MOST_RESIDENT = 32 * 1024 /* KB */ };

static void (*client)(const char *);

static void *live(void *unused) {
    (void)unused;
    client(folder);
    return NULL;
}

static int threads(void) {
    int found = 0;
    DIR *tasks = opendir("/proc/self/task");
    CHECK(tasks != NULL);
    for (struct dirent *entry; (entry = readdir(tasks));) found += entry->d_name[0] != '.';
    closedir(tasks);
    return found;
}

/* Whether the library is mapped. */
static int is_loaded(void) {
    char line[4096];
    int found = 0;
    FILE *maps = fopen("/proc/self/maps", "r");
    CHECK(maps != NULL);
    while (fgets(line, sizeof line, maps)) found |= strstr(line, "libgraftwork") != NULL;
    fclose(maps);
    return found;
}

int main(int count, char **arguments) {
    begin(count, arguments);
    CHECK(count > 2 && !is_loaded());
    long bytes = 0, touched = 0;
    for (int i = 0; i < ALL; i++) {
        if (i == WARM) bytes = allocated(), touched = resident();
        void *loaded = dlopen(arguments[2], RTLD_NOW | RTLD_LOCAL);
        if (!loaded) FAIL("%s", dlerror());
        *(void **)&client = dlsym(loaded, "client");
        CHECK(client != NULL && is_loaded());
        /* On a thread that ends before the library is closed, and on this one: an arena of the allocator each. */
        pthread_t thread;
        if (i % 2) {
            CHECK(pthread_create(&thread, NULL, live, NULL) == 0 && pthread_join(thread, NULL) == 0);
        } else {
            live(NULL);
        }
        CHECK(dlclose(loaded) == 0);
        EQUAL(1, threads());
    }
    bytes = allocated() - bytes;
    if (bytes > MOST_ALLOCATED) FAIL("%ld bytes more are allocated after %d times", bytes, ALL - WARM);
    touched = resident() - touched;
    if (touched > MOST_RESIDENT) FAIL("grew by %ld KB in %d times", touched, ALL - WARM);
    return 0;
}
