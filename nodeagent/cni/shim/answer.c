#include "answer.h"

#include <string.h>
#include <strings.h>

/* Where the line at `at` ends (its CR LF follows), or NULL. */
static const char *line_end(const char *at, const char *end)
{
    for (; end - at >= 2; at++) {
        if (at[0] == '\r' && at[1] == '\n') {
            return at;
        }
    }
    return NULL;
}

static bool starts_with(const char *at, const char *end, const char *prefix)
{
    size_t length = strlen(prefix);
    return (size_t)(end - at) >= length && strncasecmp(at, prefix, length) == 0;
}

static bool parse_status(const char *at, const char *end, struct answer *answer)
{
    /* "HTTP/1.1 200 OK": the reason is for people and may be missing. */
    if (end - at < 12 || !starts_with(at, end, "HTTP/1.") || at[8] != ' ') {
        return false;
    }
    for (const char *digit = at + 9; digit < at + 12; digit++) {
        if (*digit < '0' || *digit > '9') {
            return false;
        }
    }
    answer->success = memcmp(at + 9, "200", 3) == 0;
    answer->unknown = memcmp(at + 9, "404", 3) == 0;
    return at[9] != '1' && (end - at == 12 || at[12] == ' ');
}

static bool parse_length(const char *at, const char *end, size_t *length)
{
    size_t number = 0;
    while (at < end && *at == ' ') {
        at++;
    }
    if (at == end) {
        return false;
    }
    for (; at < end; at++) {
        if (*at < '0' || *at > '9') {
            return false;
        }
        number = number * 10 + (size_t)(*at - '0');
        if (number > ANSWER_BODY_LIMIT) {
            return false;
        }
    }
    *length = number;
    return true;
}

enum progress answer_parse(struct view received, struct answer *answer)
{
    static const char LENGTH[] = "Content-Length:";
    const char *end = received.start + received.length;
    const char *line = received.start;
    const char *stop = line_end(line, end);
    bool measured = false;
    size_t length = 0;

    if (stop == NULL) {
        return received.length < ANSWER_HEAD_LIMIT ? ANSWER_PARTIAL : ANSWER_FOREIGN;
    }
    if (!parse_status(line, stop, answer)) {
        return ANSWER_FOREIGN;
    }
    for (;;) {
        line = stop + 2;
        stop = line_end(line, end);
        if (stop == NULL) {
            return received.length < ANSWER_HEAD_LIMIT ? ANSWER_PARTIAL : ANSWER_FOREIGN;
        }
        if (stop == line) {
            break;
        }
        if (!starts_with(line, stop, LENGTH)) {
            continue;
        }
        if (measured || !parse_length(line + sizeof LENGTH - 1, stop, &length)) {
            return ANSWER_FOREIGN;
        }
        measured = true;
    }
    /* Without a length, an answer that was cut off looks like a short one; chunks begin with
       their size, and are no JSON. */
    if (!measured) {
        return ANSWER_FOREIGN;
    }
    answer->body = (struct view){stop + 2, length};
    return (size_t)(end - answer->body.start) < length ? ANSWER_PARTIAL : ANSWER_COMPLETE;
}
