/* A life in a library of its own, as a plug-in would have it: loaded by `reload.c`. */
#include "life.h"

void client(const char *where) {
    folder = where;
    life();
}
