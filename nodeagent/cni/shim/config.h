/* What the plugin's entry in the network configuration says to this program. */
#ifndef NODEAGENT_CONFIG_H
#define NODEAGENT_CONFIG_H

#include "json.h"

/* Each is a part of the configuration as it stands there, or nothing. */
struct config {
    struct view version;    /* the inside of a string */
    struct view socket;     /* likewise, short enough for a socket's address */
    struct view previous;   /* an object */
    struct view namespaces; /* an array: all pods of these need no agent */
    struct view pods;       /* an array: pods of other DaemonSets that need none */
    struct view agent_namespace;
    struct view agent_prefix; /* of the names of its pods */
};

/* False where `text` is no JSON object; entries of a wrong type count as missing. */
bool config_parse(struct view text, struct config *config);

/*
 * Whether the pod that `arguments` (CNI_ARGS) names may start without the agent: a pod of
 * a namespace in the entry, or of one of its DaemonSets. In doubt it may not.
 */
bool config_lets_through(const struct config *config, const char *arguments);

#endif
