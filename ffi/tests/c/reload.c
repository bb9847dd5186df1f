/* Loads a library that is linked with this one, lives, and unloads both, 100 times. The library is the second argument;
 * this program itself is linked with neither. */
#include "check.h"
#include <dirent.h>
#include <dlfcn.h>

/* What the loader and the allocator keep for each time is some 100 bytes; a leaked engine would be megabytes each. */
enum { WARM = 10, ALL = 100, MOST_GROWTH = 1024 /* KB */ };

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
    long before = 0;
    for (int i = 0; i < ALL; i++) {
        if (i == WARM) before = resident();
        void *loaded = dlopen(arguments[2], RTLD_NOW | RTLD_LOCAL);
        if (!loaded) FAIL("%s", dlerror());
        *(void **)&client = dlsym(loaded, "client");
        CHECK(client != NULL && is_loaded());
        /* On a thread that ends before the library goes; and, at last, on this one, whose own data may hold the library. */
        pthread_t thread;
        if (i < ALL - 10) {
            CHECK(pthread_create(&thread, NULL, live, NULL) == 0 && pthread_join(thread, NULL) == 0);
        } else {
            live(NULL);
        }
        CHECK(dlclose(loaded) == 0);
        if (i < ALL - 10) CHECK(!is_loaded());
        EQUAL(1, threads());
    }
    const long growth = resident() - before;
    if (growth > MOST_GROWTH) FAIL("grew by %ld KB in %d times", growth, ALL - WARM);
    return 0;
}
