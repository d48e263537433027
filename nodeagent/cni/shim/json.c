#include "json.h"

#include <string.h>

/* Deeper than any configuration; the closers that are still due are kept on the stack. */
enum { DEPTH = 256 };

static const struct view NOTHING = {NULL, 0};

static bool is_digit(char c)
{
    return c >= '0' && c <= '9';
}

static const char *skip_blank(const char *at, const char *end)
{
    while (at < end && (*at == ' ' || *at == '\t' || *at == '\n' || *at == '\r')) {
        at++;
    }
    return at;
}

/* The skip functions return where the thing at `at` ends, or NULL if it is not there. */

static const char *skip_literal(const char *at, const char *end, const char *literal)
{
    size_t length = strlen(literal);
    if ((size_t)(end - at) < length || memcmp(at, literal, length) != 0) {
        return NULL;
    }
    return at + length;
}

static const char *skip_escape(const char *at, const char *end)
{
    if (at == end) {
        return NULL;
    }
    if (*at != 'u') {
        return memchr("\"\\/bfnrt", *at, 8) != NULL ? at + 1 : NULL;
    }
    for (int digits = 0; digits < 4; digits++) {
        at++;
        if (at == end || memchr("0123456789abcdefABCDEF", *at, 22) == NULL) {
            return NULL;
        }
    }
    return at + 1;
}

static const char *skip_string(const char *at, const char *end)
{
    if (at == end || *at != '"') {
        return NULL;
    }
    at++;
    while (at < end && *at != '"') {
        if ((unsigned char)*at < 0x20) {
            return NULL;
        }
        if (*at != '\\') {
            at++;
            continue;
        }
        at = skip_escape(at + 1, end);
        if (at == NULL) {
            return NULL;
        }
    }
    return at < end ? at + 1 : NULL;
}

static const char *skip_digits(const char *at, const char *end)
{
    if (at == end || !is_digit(*at)) {
        return NULL;
    }
    while (at < end && is_digit(*at)) {
        at++;
    }
    return at;
}

static const char *skip_number(const char *at, const char *end)
{
    if (at < end && *at == '-') {
        at++;
    }
    at = at < end && *at == '0' ? at + 1 : skip_digits(at, end);
    if (at != NULL && at < end && *at == '.') {
        at = skip_digits(at + 1, end);
    }
    if (at != NULL && at < end && (*at == 'e' || *at == 'E')) {
        at++;
        if (at < end && (*at == '+' || *at == '-')) {
            at++;
        }
        at = skip_digits(at, end);
    }
    return at;
}

static const char *skip_scalar(const char *at, const char *end)
{
    if (at == end) {
        return NULL;
    }
    switch (*at) {
    case '"':
        return skip_string(at, end);
    case 't':
        return skip_literal(at, end, "true");
    case 'f':
        return skip_literal(at, end, "false");
    case 'n':
        return skip_literal(at, end, "null");
    default:
        return skip_number(at, end);
    }
}

/* A key, its colon, and the blanks around them. */
static const char *skip_key(const char *at, const char *end)
{
    at = skip_string(skip_blank(at, end), end);
    if (at == NULL) {
        return NULL;
    }
    at = skip_blank(at, end);
    return at < end && *at == ':' ? at + 1 : NULL;
}

/* No recursion: the depth of foreign input must not be the depth of our stack. */
static const char *skip_value(const char *at, const char *end)
{
    char closers[DEPTH];
    size_t depth = 0;

    for (;;) {
        at = skip_blank(at, end);
        if (at < end && (*at == '{' || *at == '[')) {
            if (depth == DEPTH) {
                return NULL;
            }
            closers[depth++] = *at == '{' ? '}' : ']';
            at = skip_blank(at + 1, end);
            if (at == end) {
                return NULL;
            }
            if (*at != closers[depth - 1]) {
                if (closers[depth - 1] == '}' && (at = skip_key(at, end)) == NULL) {
                    return NULL;
                }
                continue;
            }
        } else if ((at = skip_scalar(at, end)) == NULL) {
            return NULL;
        }
        while (depth > 0) {
            at = skip_blank(at, end);
            if (at == end) {
                return NULL;
            }
            if (*at == closers[depth - 1]) {
                at++;
                depth--;
                continue;
            }
            if (*at++ != ',') {
                return NULL;
            }
            if (closers[depth - 1] == '}' && (at = skip_key(at, end)) == NULL) {
                return NULL;
            }
            break;
        }
        if (depth == 0) {
            return at;
        }
    }
}

static struct view view_between(const char *start, const char *end)
{
    return (struct view){start, (size_t)(end - start)};
}

bool json_is_object(struct view text)
{
    if (text.start == NULL) {
        return false;
    }
    const char *end = text.start + text.length;
    const char *at = skip_blank(text.start, end);
    if (at == end || *at != '{') {
        return false;
    }
    at = skip_value(at, end);
    return at != NULL && skip_blank(at, end) == end;
}

struct view json_member(struct view object, const char *key)
{
    struct view found = NOTHING;
    if (object.start == NULL) {
        return NOTHING;
    }
    const char *end = object.start + object.length;
    const char *at = skip_blank(object.start, end);
    if (at == end || *at != '{') {
        return NOTHING;
    }
    for (;;) {
        at = skip_blank(at + 1, end);
        const char *name_end = skip_string(at, end);
        if (name_end == NULL) {
            return found;
        }
        bool wanted = view_equals(view_between(at + 1, name_end - 1), view_of(key));
        at = skip_key(at, end);
        if (at == NULL) {
            return found;
        }
        const char *value = skip_blank(at, end);
        at = skip_value(value, end);
        if (at == NULL) {
            return found;
        }
        if (wanted) {
            found = view_between(value, at);
        }
        at = skip_blank(at, end);
        if (at == end || *at != ',') {
            return found;
        }
    }
}

struct view json_next(struct view array, struct view previous)
{
    if (array.start == NULL || array.length == 0 || *array.start != '[') {
        return NOTHING;
    }
    const char *end = array.start + array.length;
    const char *at = array.start;
    if (previous.start != NULL) {
        at = skip_blank(previous.start + previous.length, end);
        if (at == end || *at != ',') {
            return NOTHING;
        }
    }
    const char *value = skip_blank(at + 1, end);
    at = skip_value(value, end);
    return at != NULL ? view_between(value, at) : NOTHING;
}

struct view json_string(struct view value)
{
    if (value.start == NULL || value.length < 2 || *value.start != '"') {
        return NOTHING;
    }
    struct view inside = {value.start + 1, value.length - 2};
    return memchr(inside.start, '\\', inside.length) == NULL ? inside : NOTHING;
}

bool view_equals(struct view a, struct view b)
{
    return a.start != NULL && b.start != NULL && a.length == b.length &&
           memcmp(a.start, b.start, a.length) == 0;
}

struct view view_of(const char *string)
{
    return string == NULL ? NOTHING : (struct view){string, strlen(string)};
}
