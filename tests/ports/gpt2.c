// A simple GPT-2 forward pass: a port under test. It reads the weights that `npgpt2 golden llmc`
// writes and the ids of the case `eight`, and dumps every intermediate for `npgpt2 golden check`.
//
//     cc -O2 gpt2.c -lm -o gpt2 && ./gpt2 LLMC/gpt2_124M.bin GOLDEN DUMP
//
// It accumulates sums in float32, one product after the other, as most first ports do. With
// -DERF_GELU it makes the most common mistake.
#include <math.h>
#include "golden.h"

typedef struct { int32_t magic, version, n, v, layers, heads, c, padded, rest[248]; } Header;
typedef struct {  // in the order of the file, each for all layers; weights are (out, in)
    float *wte, *wpe, *ln_1_w, *ln_1_b, *attn_w, *attn_b, *proj_w, *proj_b, *ln_2_w, *ln_2_b,
        *fc_w, *fc_b, *out_w, *out_b, *ln_f_w, *ln_f_b;
} Weights;

static const char *folder;
static FILE *lines;

static float *array(size_t n) {
    float *x = calloc(n, sizeof *x);
    if (!x) die("memory", "not enough");
    return x;
}

// Writes a tensor into a file of its own, and adds a line to index.tsv.
static void tap(int layer, const char *name, const float *x, int axes, int a, int b, int c) {
    char full[64], path[4096], shape[64];
    if (layer < 0) snprintf(full, sizeof full, "%s", name);
    else snprintf(full, sizeof full, "h.%d.%s", layer, name);
    snprintf(path, sizeof path, "%s/%s.bin", folder, full);
    if (axes == 2) snprintf(shape, sizeof shape, "1x%dx%d", a, b), c = 1;
    else snprintf(shape, sizeof shape, "1x%dx%dx%d", a, b, c);
    FILE *file = fopen(path, "wb");
    size_t n = (size_t)a * b * c;
    if (!file || fwrite(x, sizeof *x, n, file) != n || fclose(file)) die(path, "cannot be written");
    fprintf(lines, "eight/%s\tfloat32\t%s\t%s.bin\n", full, shape, full);
}

static void layer_norm(float *y, const float *x, const float *w, const float *b, int t, int c) {
    for (int i = 0; i < t; i++, x += c, y += c) {
        float mean = 0, variance = 0;
        for (int j = 0; j < c; j++) mean += x[j] / c;
        for (int j = 0; j < c; j++) variance += (x[j] - mean) * (x[j] - mean) / c;
        for (int j = 0; j < c; j++) y[j] = (x[j] - mean) / sqrtf(variance + 1e-5f) * w[j] + b[j];
    }
}

static void linear(float *y, const float *x, const float *w, const float *b, int t, int in, int to) {
    for (int i = 0; i < t; i++)
        for (int o = 0; o < to; o++) {
            float sum = b ? b[o] : 0;
            for (int j = 0; j < in; j++) sum += x[i * in + j] * w[(size_t)o * in + j];
            y[(size_t)i * to + o] = sum;
        }
}

static void attention(float *y, float *probs, const float *qkv, int t, int c, int heads) {
    int d = c / heads;
    for (int h = 0; h < heads; h++)
        for (int i = 0; i < t; i++) {
            float *p = probs + (h * t + i) * t, top = -INFINITY, sum = 0;
            for (int j = 0; j <= i; j++) {
                for (int n = 0; n < d; n++)
                    p[j] += qkv[i * 3 * c + h * d + n] * qkv[j * 3 * c + c + h * d + n];
                p[j] /= sqrtf(d);
                top = fmaxf(top, p[j]);
            }
            for (int j = 0; j <= i; j++) sum += p[j] = expf(p[j] - top);
            for (int j = 0; j <= i; j++) p[j] /= sum;
            for (int n = 0; n < d; n++) {
                float v = 0;
                for (int j = 0; j <= i; j++) v += p[j] * qkv[j * 3 * c + 2 * c + h * d + n];
                y[i * c + h * d + n] = v;
            }
        }
}

static float gelu(float x) {
#ifdef ERF_GELU
    return 0.5f * x * (1 + erff(x * sqrtf(0.5f)));
#else
    return 0.5f * x * (1 + tanhf(sqrtf(2 / acosf(-1)) * (x + 0.044715f * x * x * x)));
#endif
}

static Weights weights(const char *path, Header *h) {
    FILE *file = fopen(path, "rb");
    if (!file || fread(h, sizeof *h, 1, file) != 1 || h->magic != 20240326)
        die(path, "is not a model that 'npgpt2 golden llmc' wrote");
    size_t c = h->c, l = h->layers;
    size_t sizes[16] = {h->padded * c, h->n * c, l * c, l * c, l * 3 * c * c, l * 3 * c, l * c * c,
                        l * c, l * c, l * c, l * 4 * c * c, l * 4 * c, l * 4 * c * c, l * c, c, c};
    float *parts[16];
    for (int i = 0; i < 16; i++)
        if (fread(parts[i] = array(sizes[i]), 4, sizes[i], file) != sizes[i]) die(path, "is truncated");
    Weights w;
    memcpy(&w, parts, sizeof w);
    return w;
}

static void forward(const Header *h, const Weights *w, const int32_t *ids, int t) {
    int c = h->c, f = 4 * c, n = t * c;
    float *x = array(n), *y = array(n), *z = array(n), *qkv = array(3 * n), *mlp = array(t * f);
    for (int i = 0; i < n; i++) {
        y[i] = w->wte[(size_t)ids[i / c] * c + i % c];
        x[i] = y[i] + w->wpe[i];
    }
    tap(-1, "wte", y, 2, t, c, 0), tap(-1, "wpe", w->wpe, 2, t, c, 0);
    tap(-1, "embed", x, 2, t, c, 0);
    for (int i = 0; i < h->layers; i++) {
        size_t square = (size_t)i * c * c;
        float *probs = array(h->heads * t * t);
        layer_norm(y, x, w->ln_1_w + i * c, w->ln_1_b + i * c, t, c);
        tap(i, "ln_1", y, 2, t, c, 0);
        linear(qkv, y, w->attn_w + 3 * square, w->attn_b + i * 3 * c, t, c, 3 * c);
        tap(i, "attn.c_attn", qkv, 2, t, 3 * c, 0);
        attention(y, probs, qkv, t, c, h->heads);
        tap(i, "attn.probs", probs, 3, h->heads, t, t), tap(i, "attn.heads", y, 2, t, c, 0);
        linear(z, y, w->proj_w + square, w->proj_b + i * c, t, c, c);
        tap(i, "attn.c_proj", z, 2, t, c, 0);
        for (int j = 0; j < n; j++) x[j] += z[j];
        tap(i, "resid_attn", x, 2, t, c, 0);
        layer_norm(y, x, w->ln_2_w + i * c, w->ln_2_b + i * c, t, c);
        tap(i, "ln_2", y, 2, t, c, 0);
        linear(mlp, y, w->fc_w + 4 * square, w->fc_b + i * f, t, c, f);
        tap(i, "mlp.c_fc", mlp, 2, t, f, 0);
        for (int j = 0; j < t * f; j++) mlp[j] = gelu(mlp[j]);
        tap(i, "mlp.act", mlp, 2, t, f, 0);
        linear(z, mlp, w->out_w + 4 * square, w->out_b + i * c, t, f, c);
        tap(i, "mlp.c_proj", z, 2, t, c, 0);
        for (int j = 0; j < n; j++) x[j] += z[j];
        tap(i, "resid_mlp", x, 2, t, c, 0);
        free(probs);
    }
    float *logits = array((size_t)t * h->v);
    layer_norm(y, x, w->ln_f_w, w->ln_f_b, t, c), tap(-1, "ln_f", y, 2, t, c, 0);
    linear(logits, y, w->wte, NULL, t, c, h->v), tap(-1, "logits", logits, 2, t, h->v, 0);
}

int main(int argc, char **argv) {
    if (argc != 4) die("usage", "gpt2 MODEL.bin GOLDEN DUMP");
    Header header;
    Weights w = weights(argv[1], &header);
    char path[4096];
    snprintf(path, sizeof path, "%s/index.tsv", folder = argv[3]);
    if (!(lines = fopen(path, "w"))) die(path, "cannot be written");
    fprintf(lines, "name\tdtype\tshape\tfile\n");
    FILE *index = open_index(argv[2]);
    for (Tensor t; next_tensor(index, argv[2], &t); free(t.data))
        if (!strcmp(t.name, "eight/input_ids")) {
            forward(&header, &w, t.data, t.bytes / 4);
            return fclose(lines) ? 1 : 0;
        }
    die(argv[2], "has no eight/input_ids");
}
