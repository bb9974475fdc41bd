// Reads the raw files of a golden folder, tensor by tensor, and checks each sha256.
#include <stdlib.h>
#include "sha256.h"

typedef struct {
    char name[256], dtype[16], shape[64], file[256], sha256[65];
    long stride, offset, bytes;
    void *data;  // the caller frees it
} Tensor;

static void die(const char *what, const char *why) {
    fprintf(stderr, "%s: %s\n", what, why);
    exit(1);
}

// Reads the tensor of the next line of index.tsv; returns 0 at the end.
static int next_tensor(FILE *index, const char *folder, Tensor *t) {
    char line[4096], path[4096], found[65];
    if (!fgets(line, sizeof line, index)) return 0;
    if (sscanf(line, "%255[^\t]\t%15s\t%63s\t%ld\t%255s\t%ld\t%ld\t%64s", t->name, t->dtype,
               t->shape, &t->stride, t->file, &t->offset, &t->bytes, t->sha256) != 8)
        die("index.tsv: cannot read", line);
    snprintf(path, sizeof path, "%s/%s", folder, t->file);
    FILE *raw = fopen(path, "rb");
    t->data = malloc(t->bytes + 1);
    if (!raw || !t->data || fseek(raw, t->offset, SEEK_SET)
        || fread(t->data, 1, t->bytes, raw) != (size_t)t->bytes)
        die(path, "cannot be read");
    fclose(raw);
    sha256(t->data, t->bytes, found);
    if (strcmp(found, t->sha256)) die(t->name, "sha256 differs");
    return 1;
}

static FILE *open_index(const char *folder) {
    char path[4096], columns[4096];
    snprintf(path, sizeof path, "%s/index.tsv", folder);
    FILE *index = fopen(path, "r");
    if (!index || !fgets(columns, sizeof columns, index)) die(path, "cannot be read");
    return index;
}
