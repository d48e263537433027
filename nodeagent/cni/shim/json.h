/* Reading JSON in place: nothing is copied, nothing is decoded. */
#ifndef NODEAGENT_JSON_H
#define NODEAGENT_JSON_H

#include <stdbool.h>
#include <stddef.h>

/* Some bytes of somebody else's buffer; `start` is NULL where there is nothing. */
struct view {
    const char *start;
    size_t length;
};

/* Whether `text` is one JSON object and nothing else, nested at most 256 deep. */
bool json_is_object(struct view text);

/*
 * The value of `key` in `object`, from its first to its last byte; of equal keys the
 * last, as in Go and Python. Nothing where `object` is no object or has no such key
 * (one that is written with escapes is not found).
 */
struct view json_member(struct view object, const char *key);

/* The next element of `array` after `previous`; its first after nothing. */
struct view json_next(struct view array, struct view previous);

/*
 * The inside of a string, as it can stand in another JSON string; nothing where `value`
 * is no string, or one with escapes: no name or path that we look for has any.
 */
struct view json_string(struct view value);

/* Whether `a` has the bytes of `b`; nothing equals nothing. */
bool view_equals(struct view a, struct view b);

struct view view_of(const char *string);

#endif
