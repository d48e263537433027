#include "exchange.h"

#include <errno.h>
#include <limits.h>
#include <poll.h>
#include <stdio.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/time.h>
#include <sys/un.h>
#include <time.h>
#include <unistd.h>

int64_t exchange_now(void)
{
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return (int64_t)now.tv_sec * 1000 + now.tv_nsec / 1000000;
}

bool exchange_wait(int fd, short events, int64_t deadline)
{
    for (;;) {
        int64_t left = deadline - exchange_now();
        struct pollfd pollfd = {.fd = fd, .events = events};
        if (left <= 0) {
            return false;
        }
        if (poll(&pollfd, 1, left < INT_MAX ? (int)left : INT_MAX) > 0) {
            return true;
        }
    }
}

static enum outcome connect_to(int fd, struct view path, int64_t deadline)
{
    struct sockaddr_un address = {.sun_family = AF_UNIX};
    int64_t left = deadline - exchange_now();
    struct timeval patience = {
        .tv_sec = (time_t)(left / 1000),
        .tv_usec = (suseconds_t)(left % 1000 * 1000),
    };

    if (path.length >= sizeof address.sun_path) {
        errno = ENAMETOOLONG;
        return AGENT_AWAY;
    }
    memcpy(address.sun_path, path.start, path.length);
    /* A Unix socket whose queue is full makes connect() wait as long as a send may take. */
    if (left <= 0 || setsockopt(fd, SOL_SOCKET, SO_SNDTIMEO, &patience, sizeof patience) != 0) {
        return AGENT_SILENT;
    }
    if (connect(fd, (const struct sockaddr *)&address, sizeof address) == 0) {
        return AGENT_ANSWERED;
    }
    return errno == EAGAIN ? AGENT_SILENT : AGENT_AWAY;
}

static enum outcome send_all(int fd, struct view bytes, int64_t deadline)
{
    while (bytes.length > 0) {
        if (!exchange_wait(fd, POLLOUT, deadline)) {
            return AGENT_SILENT;
        }
        ssize_t sent = send(fd, bytes.start, bytes.length, MSG_DONTWAIT | MSG_NOSIGNAL);
        if (sent > 0) {
            bytes.start += sent;
            bytes.length -= (size_t)sent;
        } else if (errno != EAGAIN && errno != EINTR) {
            return AGENT_AWAY;
        }
    }
    return AGENT_ANSWERED;
}

static enum outcome receive(int fd, int64_t deadline, struct answer *answer)
{
    static char buffer[ANSWER_HEAD_LIMIT + ANSWER_BODY_LIMIT];
    size_t length = 0;

    while (length < sizeof buffer) {
        if (!exchange_wait(fd, POLLIN, deadline)) {
            return AGENT_SILENT;
        }
        ssize_t received = recv(fd, buffer + length, sizeof buffer - length, MSG_DONTWAIT);
        if (received < 0 && (errno == EAGAIN || errno == EINTR)) {
            continue;
        }
        if (received <= 0) {
            errno = received == 0 ? ECONNRESET : errno;
            return AGENT_AWAY;
        }
        length += (size_t)received;
        switch (answer_parse((struct view){buffer, length}, answer)) {
        case ANSWER_COMPLETE:
            return AGENT_ANSWERED;
        case ANSWER_FOREIGN:
            return AGENT_FOREIGN;
        case ANSWER_PARTIAL:
            break;
        }
    }
    return AGENT_FOREIGN;
}

static enum outcome converse(int fd, struct view body, int64_t deadline, struct answer *answer)
{
    char head[160];
    int length = snprintf(head, sizeof head,
                          "POST /cni HTTP/1.1\r\n"
                          "Host: nodeagent\r\n"
                          "Content-Type: application/octet-stream\r\n"
                          "Content-Length: %zu\r\n"
                          "Connection: close\r\n\r\n",
                          body.length);
    enum outcome outcome = send_all(fd, (struct view){head, (size_t)length}, deadline);

    if (outcome == AGENT_ANSWERED) {
        outcome = send_all(fd, body, deadline);
    }
    /* A server that refuses a request says so before it has read all of it. */
    return outcome == AGENT_SILENT ? outcome : receive(fd, deadline, answer);
}

enum outcome exchange(struct view path, struct view body, int64_t deadline, struct answer *answer)
{
    int fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);
    if (fd < 0) {
        return AGENT_AWAY;
    }
    enum outcome outcome = connect_to(fd, path, deadline);
    if (outcome == AGENT_ANSWERED) {
        outcome = converse(fd, body, deadline, answer);
    }
    int error = errno;
    close(fd);
    errno = error;
    return outcome;
}
