/*
 * The CNI plugin that the container runtime executes. It knows nothing of the mesh: the
 * agent has the request as it came and gives the answer that is printed. Only when the
 * agent cannot be reached does it decide, by its entry in the network configuration.
 */
#include <errno.h>
#include <poll.h>
#include <signal.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

#include "config.h"
#include "exchange.h"

#ifndef INPUT_DEADLINE_MS
#define INPUT_DEADLINE_MS 10000
#endif
/* The agent's own deadline is 30 s: its reason is worth more than ours. */
#ifndef ANSWER_DEADLINE_MS
#define ANSWER_DEADLINE_MS 35000
#endif
/* An agent's restart takes a second or two, and no pod need notice. */
#ifndef RESTART_PATIENCE_MS
#define RESTART_PATIENCE_MS 3000
#endif
#define RESTART_PAUSE_MS 50

enum { ENVIRONMENT_LIMIT = 64 * 1024, INPUT_LIMIT = 1024 * 1024 };

/* CNI's error codes. */
enum { BAD_ENVIRONMENT = 4, BAD_INPUT = 6, BAD_CONFIGURATION = 7, TRY_AGAIN_LATER = 11 };

#define VERSIONS "[\"0.3.0\",\"0.3.1\",\"0.4.0\",\"1.0.0\",\"1.1.0\"]"
#define NEWEST_VERSION "1.1.0"

/* What every HTTP server of Go's says to a path that it does not have. */
#define UNKNOWN_TO_ISTIO "404 page not found\n"

enum command {
    COMMAND_ADD,
    COMMAND_CHECK,
    COMMAND_DEL,
    COMMAND_GC,
    COMMAND_STATUS,
    COMMAND_VERSION,
    COMMAND_UNKNOWN
};

struct call {
    enum command command;
    struct config config;
};

extern char **environ;

static enum command command_named(const char *name)
{
    static const char *const NAMES[] = {"ADD", "CHECK", "DEL", "GC", "STATUS", "VERSION"};

    for (int i = 0; name != NULL && i < COMMAND_UNKNOWN; i++) {
        if (strcmp(name, NAMES[i]) == 0) {
            return (enum command)i;
        }
    }
    return COMMAND_UNKNOWN;
}

static int print(struct view text)
{
    fwrite(text.start, 1, text.length, stdout);
    return fflush(stdout) == 0 ? EXIT_SUCCESS : EXIT_FAILURE;
}

static struct view version_of(const struct call *call)
{
    struct view version = call->config.version;
    return version.start != NULL ? version : view_of(NEWEST_VERSION);
}

static int print_with_version(const struct call *call, const char *rest)
{
    struct view version = version_of(call);
    printf("{\"cniVersion\":\"%.*s\"%s}", (int)version.length, version.start, rest);
    return fflush(stdout) == 0 ? EXIT_SUCCESS : EXIT_FAILURE;
}

static int fail(const struct call *call, int code, const char *format, ...)
    __attribute__((format(printf, 3, 4)));

/*
 * The call fails, or succeeds where a failure would do harm: pods would hang in
 * Terminating (DEL, GC: L18), and kubelet would call the node not ready and could not
 * start the agent's own pod (STATUS: L15). The text becomes part of a JSON string.
 */
static int fail(const struct call *call, int code, const char *format, ...)
{
    char reason[1024];
    char rest[sizeof reason + 64];
    va_list values;

    if (call->command == COMMAND_DEL || call->command == COMMAND_GC ||
        call->command == COMMAND_STATUS) {
        return EXIT_SUCCESS;
    }
    va_start(values, format);
    vsnprintf(reason, sizeof reason, format, values);
    va_end(values);
    snprintf(rest, sizeof rest, ",\"code\":%d,\"msg\":\"%s\"", code, reason);
    print_with_version(call, rest);
    return EXIT_FAILURE;
}

/* Appends the CNI_* variables, each with its NUL, and one more NUL; 0 if too many. */
static size_t read_environment(char *buffer)
{
    size_t length = 0;

    for (char **variable = environ; *variable != NULL; variable++) {
        if (strncmp(*variable, "CNI_", 4) != 0) {
            continue;
        }
        size_t size = strlen(*variable) + 1;
        if (size >= ENVIRONMENT_LIMIT - length) {
            return 0;
        }
        memcpy(buffer + length, *variable, size);
        length += size;
    }
    buffer[length] = '\0';
    return length + 1;
}

/* Reads standard input to its end; false and errno if it does not end as it should. */
static bool read_input(char *buffer, size_t *length)
{
    int64_t deadline = exchange_now() + INPUT_DEADLINE_MS;

    for (*length = 0; *length <= INPUT_LIMIT;) {
        if (!exchange_wait(STDIN_FILENO, POLLIN, deadline)) {
            errno = ETIMEDOUT;
            return false;
        }
        ssize_t count = read(STDIN_FILENO, buffer + *length, INPUT_LIMIT + 1 - *length);
        if (count == 0) {
            return true;
        }
        if (count > 0) {
            *length += (size_t)count;
        } else if (errno != EINTR && errno != EAGAIN) {
            return false;
        }
    }
    errno = EFBIG;
    return false;
}

/* A result's absence would be taken for an answer, so it has to be what CNI asks for. */
static bool is_verdict(const struct call *call, const struct answer *answer)
{
    bool silent = answer->success && call->command != COMMAND_ADD;
    return json_is_object(answer->body) || (silent && answer->body.length == 0);
}

static int let_through(const struct call *call)
{
    if (call->command != COMMAND_ADD) {
        return EXIT_SUCCESS;
    }
    if (call->config.previous.start != NULL) {
        return print(call->config.previous);
    }
    return print_with_version(call, "");
}

static int fail_without_agent(const struct call *call, enum outcome outcome)
{
    const char *reason = outcome == AGENT_AWAY ? strerror(errno)
                         : outcome == AGENT_SILENT
                             ? "no answer in time"
                             : "what answers there is not the agent, or another version of it";
    struct view socket = call->config.socket;
    struct view namespace = call->config.agent_namespace;

    return fail(call, TRY_AGAIN_LATER,
                "the mesh's node agent cannot be reached at %.*s: %s. This pod waits for it; "
                "look at the agent's pod on this node (kubectl get pods -o wide -n %.*s)",
                (int)socket.length, socket.start, reason,
                namespace.start != NULL ? (int)namespace.length : 12,
                namespace.start != NULL ? namespace.start : "istio-system");
}

static int forward(const struct call *call, struct view request)
{
    const struct timespec pause = {.tv_nsec = RESTART_PAUSE_MS * 1000000L};
    bool excused = config_lets_through(&call->config, getenv("CNI_ARGS"));
    bool waits = (call->command == COMMAND_ADD || call->command == COMMAND_CHECK) && !excused;
    int64_t start = exchange_now();
    struct answer answer = {0};
    enum outcome outcome;

    /* Waiting for an agent that restarts is for those who cannot do without its answer: the
       agent's own pod would only wait for itself. A request that is sent twice does no
       harm: it says what has to be, not what has to change. */
    for (;;) {
        outcome = exchange(call->config.socket, request, start + ANSWER_DEADLINE_MS, &answer);
        if (outcome != AGENT_AWAY || !waits || exchange_now() - start >= RESTART_PATIENCE_MS) {
            break;
        }
        nanosleep(&pause, NULL);
    }
    if (outcome == AGENT_ANSWERED && is_verdict(call, &answer)) {
        int printed = print(answer.body);
        return answer.success ? printed : EXIT_FAILURE;
    }
    /* Istio's agent, in the place of ours again: it has left our entry in the chain beside its
       own, which decides. Our agent knows the path. */
    bool istios = outcome == AGENT_ANSWERED && answer.unknown &&
                  view_equals(answer.body, view_of(UNKNOWN_TO_ISTIO));
    if (excused || istios) {
        return let_through(call);
    }
    return fail_without_agent(call, outcome == AGENT_ANSWERED ? AGENT_FOREIGN : outcome);
}

int main(void)
{
    static char request[ENVIRONMENT_LIMIT + INPUT_LIMIT + 1];
    struct call call = {.command = command_named(getenv("CNI_COMMAND"))};
    size_t head = read_environment(request);
    size_t input = 0;

    /* A reader that has gone is an error of write(), not the end of us. */
    signal(SIGPIPE, SIG_IGN);
    if (call.command == COMMAND_UNKNOWN) {
        return fail(&call, BAD_ENVIRONMENT, "CNI_COMMAND is missing or unknown");
    }
    if (head == 0) {
        return fail(&call, BAD_ENVIRONMENT, "the CNI_ variables are larger than 64 KiB");
    }
    bool complete = read_input(request + head, &input);
    bool parsed = complete && config_parse((struct view){request + head, input}, &call.config);
    if (call.command == COMMAND_VERSION) {
        return print_with_version(&call, ",\"supportedVersions\":" VERSIONS);
    }
    if (!complete) {
        return fail(&call, BAD_INPUT, "cannot read the configuration from standard input: %s",
                    errno == EFBIG ? "it is larger than 1 MiB" : strerror(errno));
    }
    if (!parsed) {
        return fail(&call, BAD_INPUT, "the configuration on standard input is no JSON object");
    }
    if (call.config.socket.start == NULL) {
        return fail(&call, BAD_CONFIGURATION,
                    "\\\"socket\\\" is missing from the configuration, or is no usable path");
    }
    return forward(&call, (struct view){request, head + input});
}
