/* One request to the agent over its Unix socket, and its answer. */
#ifndef NODEAGENT_EXCHANGE_H
#define NODEAGENT_EXCHANGE_H

#include <stdint.h>

#include "answer.h"

enum outcome {
    AGENT_ANSWERED,
    AGENT_AWAY,    /* nobody listens, or the connection broke: an agent that restarts;
                      errno says how */
    AGENT_SILENT,  /* the deadline passed */
    AGENT_FOREIGN, /* what came is no answer of the agent's */
};

/* Milliseconds on a clock that nobody sets. */
int64_t exchange_now(void);

/* Waits until `fd` has one of `events` (of poll); false when `deadline` has passed. */
bool exchange_wait(int fd, short events, int64_t deadline);

/* Posts `body` to the agent at `path`; `answer` points into a static buffer. */
enum outcome exchange(struct view path, struct view body, int64_t deadline, struct answer *answer);

#endif
