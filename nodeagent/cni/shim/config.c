#include "config.h"

#include <string.h>
#include <sys/socket.h>
#include <sys/un.h>

enum {
    VERSION_LIMIT = 16,
    NAME_LIMIT = 253, /* of a pod; a namespace's name is shorter */
    SUFFIX_LENGTH = 5,
};

static struct view member_string(struct view object, const char *key, size_t limit)
{
    struct view string = json_string(json_member(object, key));
    return string.length > 0 && string.length <= limit ? string : (struct view){NULL, 0};
}

bool config_parse(struct view text, struct config *config)
{
    *config = (struct config){0};
    if (!json_is_object(text)) {
        return false;
    }
    config->version = member_string(text, "cniVersion", VERSION_LIMIT);
    config->socket =
        member_string(text, "socket", sizeof((struct sockaddr_un *)NULL)->sun_path - 1);
    struct view previous = json_member(text, "prevResult");
    if (previous.start != NULL && *previous.start == '{') {
        config->previous = previous;
    }
    struct view let_through = json_member(text, "letThrough");
    struct view agent = json_member(let_through, "agent");
    config->namespaces = json_member(let_through, "namespaces");
    config->pods = json_member(let_through, "pods");
    config->agent_namespace = member_string(agent, "namespace", NAME_LIMIT);
    config->agent_prefix = member_string(agent, "podPrefix", NAME_LIMIT);
    return true;
}

/* The value of `key` in CNI_ARGS ("key=value;key=value"); of equal keys the last. */
static struct view argument(const char *arguments, const char *key)
{
    struct view found = {NULL, 0};
    size_t key_length = strlen(key);

    for (const char *at = arguments; at != NULL;) {
        size_t length = strcspn(at, ";");
        if (length > key_length && at[key_length] == '=' && memcmp(at, key, key_length) == 0) {
            found = (struct view){at + key_length + 1, length - key_length - 1};
        }
        at = at[length] == ';' ? at + length + 1 : NULL;
    }
    return found;
}

/* The five letters that the DaemonSet controller appends to its own name and a dash. */
static bool is_pod_suffix(const char *at)
{
    for (int i = 0; i < SUFFIX_LENGTH; i++) {
        if ((at[i] < 'a' || at[i] > 'z') && (at[i] < '0' || at[i] > '9')) {
            return false;
        }
    }
    return true;
}

struct pod {
    struct view namespace;
    struct view name;
};

/* Whether `pod` is one of the DaemonSet in `namespace` that calls its pods `prefix` and so on. */
static bool is_daemon_pod(struct pod pod, struct view namespace, struct view prefix)
{
    return view_equals(pod.namespace, namespace) && prefix.start != NULL &&
           pod.name.start != NULL && pod.name.length == prefix.length + SUFFIX_LENGTH &&
           memcmp(pod.name.start, prefix.start, prefix.length) == 0 &&
           is_pod_suffix(pod.name.start + prefix.length);
}

bool config_lets_through(const struct config *config, const char *arguments)
{
    struct pod pod = {argument(arguments, "K8S_POD_NAMESPACE"),
                      argument(arguments, "K8S_POD_NAME")};
    struct view element = {NULL, 0};

    if (pod.namespace.length == 0) {
        return false;
    }
    while ((element = json_next(config->namespaces, element)).start != NULL) {
        if (view_equals(json_string(element), pod.namespace)) {
            return true;
        }
    }
    while ((element = json_next(config->pods, element)).start != NULL) {
        if (is_daemon_pod(pod, member_string(element, "namespace", NAME_LIMIT),
                          member_string(element, "podPrefix", NAME_LIMIT))) {
            return true;
        }
    }
    return is_daemon_pod(pod, config->agent_namespace, config->agent_prefix);
}
