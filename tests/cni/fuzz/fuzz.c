/*
 * A small fuzzer, guided by the compiler's coverage, for the parts of the CNI binary that
 * read foreign bytes. It runs under the sanitizers, each input in memory of its exact size.
 *
 *     fuzz config|answer SECONDS RANDOM-SEED CRASH-FILE SEED-FILE...
 *     fuzz judge        says for each text of standard input (a 32-bit length, then the
 *                       bytes) whether it is a JSON object: y or n
 */
#include <sanitizer/common_interface_defs.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "answer.h"
#include "config.h"

enum { INPUT_LIMIT = 2048, CORPUS_LIMIT = 8192, EDGES = 1 << 14 };

struct input {
    size_t length;
    char bytes[INPUT_LIMIT];
};

static struct input corpus[CORPUS_LIMIT];
static size_t corpus_size;
static struct input current;
static const char *crash_file;
static uint64_t random_state;

static uint8_t hits[EDGES], seen[EDGES];
static uintptr_t previous_place;
static bool tracing;

void __sanitizer_cov_trace_pc(void);

__attribute__((no_sanitize_coverage)) void __sanitizer_cov_trace_pc(void)
{
    if (tracing) {
        uintptr_t place = (uintptr_t)__builtin_return_address(0);
        uint8_t *edge = &hits[(place ^ previous_place) % EDGES];
        *edge = (uint8_t)(*edge + (*edge < UINT8_MAX));
        previous_place = place << 1;
    }
}

static void save_current(void)
{
    FILE *file = fopen(crash_file, "wb");
    if (file != NULL) {
        fwrite(current.bytes, 1, current.length, file);
        fclose(file);
    }
}

static void require(bool holds, const char *what)
{
    if (!holds) {
        fprintf(stderr, "broken promise: %s\n", what);
        abort();
    }
}

/* Memory of exactly `size` bytes, or of one: the sanitizers see each step beyond it. */
static char *allocate(size_t size)
{
    char *memory = malloc(size + (size == 0));
    require(memory != NULL, "there is memory");
    return memory;
}

static bool is_inside(struct view part, struct view whole)
{
    return part.start == NULL || (part.start >= whole.start && part.length <= whole.length &&
                                  part.start + part.length <= whole.start + whole.length);
}

/* The input is CNI_ARGS up to its first NUL, then the configuration. */
static void try_config(const char *bytes, size_t length)
{
    size_t head = strnlen(bytes, length);
    char *arguments = strndup(bytes, head);
    size_t size = length > head ? length - head - 1 : 0;
    char *text = allocate(size);
    struct config config;

    memcpy(text, bytes + length - size, size);
    struct view whole = {text, size};
    bool parsed = config_parse(whole, &config);
    require(parsed == json_is_object(whole), "a configuration is a JSON object");
    const struct view parts[] = {config.version,     config.socket, config.previous,
                                 config.namespaces,  config.pods,   config.agent_namespace,
                                 config.agent_prefix};
    for (size_t i = 0; i < sizeof parts / sizeof *parts; i++) {
        require(is_inside(parts[i], whole), "each part is inside the configuration");
    }
    require(config.previous.start == NULL || json_is_object(config.previous),
            "the previous result is a JSON object");
    require(parsed || !config_lets_through(&config, arguments), "no leave without an entry");
    config_lets_through(&config, arguments);
    free(arguments);
    free(text);
}

/* The answer comes in pieces, and each prefix has to be judged in step with the whole. */
static void try_answer(const char *bytes, size_t length)
{
    enum progress before = ANSWER_PARTIAL;
    size_t body = 0;

    for (size_t step = 1 + length / 16, size = 0; size <= length; size += step) {
        char *text = allocate(size);
        struct answer answer = {0};
        memcpy(text, bytes, size);
        enum progress progress = answer_parse((struct view){text, size}, &answer);
        require(before == ANSWER_PARTIAL || progress == before, "a judgment stands");
        if (progress == ANSWER_COMPLETE) {
            require(is_inside(answer.body, (struct view){text, size}), "the body is inside");
            require(before == ANSWER_PARTIAL || answer.body.length == body, "the body stands");
            body = answer.body.length;
        }
        before = progress;
        free(text);
    }
}

static uint64_t random_below(uint64_t limit)
{
    random_state ^= random_state << 13;
    random_state ^= random_state >> 7;
    random_state ^= random_state << 17;
    return random_state % limit;
}

static void replace(size_t at, size_t removed, const char *bytes, size_t length)
{
    if (current.length - removed + length > INPUT_LIMIT) {
        return;
    }
    memmove(current.bytes + at + length, current.bytes + at + removed,
            current.length - at - removed);
    memcpy(current.bytes + at, bytes, length);
    current.length = current.length - removed + length;
}

static void mutate(void)
{
    /* clang-format off */
    static const char *const TOKENS[] = {
        "{", "}", "[", "]", ",", ":", "\"", "\\", "\\u00e9", "null", "true", "-0.5e+7", "{}", "[]",
        "[[[[[[[[[[[[[[[[", "\"a\":", "\"namespaces\":[", "\"agent\":{", "\"podPrefix\":",
        "\"pods\":[", "\"namespace\":", "\"socket\":", "\"prevResult\":", "\"cniVersion\":",
        "K8S_POD_NAME=", "K8S_POD_NAMESPACE=", ";", "\r\n", "\r\n\r\n", "Content-Length: ",
        "0", "1048576", "1048577", "HTTP/1.1 ", "200",
    };
    /* clang-format on */
    const struct input *other = &corpus[random_below(corpus_size)];
    size_t at = (size_t)random_below(current.length + 1);
    size_t rest = current.length - at;
    size_t from = (size_t)random_below(other->length + 1);
    char byte = (char)random_below(256);
    const char *token = TOKENS[random_below(sizeof TOKENS / sizeof *TOKENS)];

    switch (random_below(6)) {
    case 0:
        replace(at, rest > 0, &byte, 1);
        break;
    case 1:
        replace(at, (size_t)random_below((rest < 16 ? rest : 16) + 1), "", 0);
        break;
    case 2:
        replace(at, (size_t)random_below((rest < 4 ? rest : 4) + 1), token, strlen(token));
        break;
    case 3:
        replace(at, rest, "", 0);
        break;
    case 4:
        replace(at, rest, other->bytes + from, other->length - from);
        break;
    default:
        replace(at, 0, other->bytes + from, (size_t)random_below(other->length - from + 1));
        break;
    }
}

static bool found_new_edges(void)
{
    bool found = false;

    for (size_t i = 0; i < EDGES; i++) {
        /* One bit for each order of magnitude: loops count, but not every turn of them. */
        if (hits[i] != 0) {
            uint8_t magnitude = (uint8_t)(1U << (31 - __builtin_clz(hits[i])));
            found = found || (magnitude & ~seen[i]) != 0;
            seen[i] |= magnitude;
        }
    }
    return found;
}

static void try_current(void (*target)(const char *, size_t))
{
    memset(hits, 0, sizeof hits);
    previous_place = 0;
    tracing = true;
    target(current.bytes, current.length);
    tracing = false;
    if (found_new_edges() && corpus_size < CORPUS_LIMIT) {
        corpus[corpus_size++] = current;
    }
}

static void read_seed(const char *path)
{
    FILE *file = fopen(path, "rb");
    if (file == NULL) {
        perror(path);
        exit(2);
    }
    current.length = fread(current.bytes, 1, INPUT_LIMIT, file);
    fclose(file);
}

static int fuzz(void (*target)(const char *, size_t), char **arguments)
{
    time_t end = time(NULL) + atoi(arguments[0]);
    unsigned long runs = 0;

    random_state = strtoull(arguments[1], NULL, 10) * 0x9E3779B97F4A7C15 + 1;
    crash_file = arguments[2];
    __sanitizer_set_death_callback(save_current);
    for (char **seed = arguments + 3; *seed != NULL; seed++) {
        read_seed(*seed);
        try_current(target);
    }
    size_t seeds = corpus_size;
    for (; runs % 256 != 0 || time(NULL) < end; runs++) {
        current = corpus[random_below(corpus_size)];
        for (uint64_t count = 1 + random_below(4); count > 0; count--) {
            mutate();
        }
        try_current(target);
    }
    printf("%lu %zu %zu\n", runs, seeds, corpus_size);
    return 0;
}

static int judge(void)
{
    uint32_t length;

    while (fread(&length, sizeof length, 1, stdin) == 1) {
        char *text = allocate(length);
        if (fread(text, 1, length, stdin) != length) {
            free(text);
            return 2;
        }
        putchar(json_is_object((struct view){text, length}) ? 'y' : 'n');
        fflush(stdout);
        free(text);
    }
    return 0;
}

int main(int count, char **arguments)
{
    if (count == 2 && strcmp(arguments[1], "judge") == 0) {
        return judge();
    }
    if (count < 6) {
        return 2;
    }
    return fuzz(strcmp(arguments[1], "config") == 0 ? try_config : try_answer, arguments + 2);
}
