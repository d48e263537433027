/* The agent's answer: one HTTP response of a stated length. */
#ifndef NODEAGENT_ANSWER_H
#define NODEAGENT_ANSWER_H

#include "json.h"

/* A CNI result takes some kilobytes; aiohttp's headers some hundred bytes. */
enum { ANSWER_HEAD_LIMIT = 16 * 1024, ANSWER_BODY_LIMIT = 1024 * 1024 };

enum progress {
    ANSWER_PARTIAL, /* so far it can become an answer */
    ANSWER_COMPLETE,
    ANSWER_FOREIGN, /* whatever speaks there, it is not the agent */
};

struct answer {
    bool success; /* status 200 */
    bool unknown; /* status 404: whoever answers has no such path */
    struct view body;
};

/* Whether `received` has the answer whole; `answer` is filled in if so. */
enum progress answer_parse(struct view received, struct answer *answer);

#endif
