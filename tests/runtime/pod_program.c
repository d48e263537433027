/* The only program in the tests' pods: a pause container, a server and a client.
 *
 *   pod                       waits until it is told to end
 *   pod listen PORT           answers each connection with its peer's address
 *   pod dial ADDRESS PORT     says where it arrived: prints what the server answers
 */
#include <arpa/inet.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

static void fail(const char *what)
{
    perror(what);
    exit(1);
}

static void end(int number)
{
    (void)number;
    _exit(0);
}

static void answer(int listener)
{
    struct sockaddr_in6 peer;
    socklen_t size = sizeof peer;
    char text[INET6_ADDRSTRLEN];
    int connection = accept(listener, (struct sockaddr *)&peer, &size);
    if (connection < 0)
        fail("accept");
    inet_ntop(AF_INET6, &peer.sin6_addr, text, sizeof text);
    if (write(connection, text, strlen(text)) < 0)
        fail("write");
    close(connection);
}

static void listen_at(int port)
{
    struct sockaddr_in6 address = {.sin6_family = AF_INET6,
                                   .sin6_port = htons((unsigned short)port)};
    int listener = socket(AF_INET6, SOCK_STREAM, 0), one = 1;
    setsockopt(listener, SOL_SOCKET, SO_REUSEADDR, &one, sizeof one);
    if (bind(listener, (struct sockaddr *)&address, sizeof address) || listen(listener, 64))
        fail("listen");
    for (;;)
        answer(listener);
}

static void dial(const char *host, const char *port)
{
    struct sockaddr_in v4 = {.sin_family = AF_INET, .sin_port = htons((unsigned short)atoi(port))};
    struct sockaddr_in6 v6 = {.sin6_family = AF_INET6, .sin6_port = v4.sin_port};
    struct sockaddr *address = (struct sockaddr *)&v6;
    socklen_t size = sizeof v6;
    char text[256];
    if (inet_pton(AF_INET, host, &v4.sin_addr) == 1) {
        address = (struct sockaddr *)&v4;
        size = sizeof v4;
    } else if (inet_pton(AF_INET6, host, &v6.sin6_addr) != 1) {
        fail("address");
    }
    alarm(10); /* seconds; longer than any test waits */
    int connection = socket(address->sa_family, SOCK_STREAM, 0);
    if (connect(connection, address, size))
        fail("connect");
    for (ssize_t got; (got = read(connection, text, sizeof text)) != 0;) {
        if (got < 0 || write(STDOUT_FILENO, text, (size_t)got) != got)
            fail("read");
    }
}

int main(int count, char **words)
{
    signal(SIGTERM, end); /* PID 1 of a container has no default action */
    signal(SIGINT, end);
    if (count == 3 && !strcmp(words[1], "listen"))
        listen_at(atoi(words[2]));
    if (count == 4 && !strcmp(words[1], "dial")) {
        dial(words[2], words[3]);
        return 0;
    }
    for (;;)
        pause();
}
