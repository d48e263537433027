// Command driver does one CNI operation with the CNI project's own library, as a container
// runtime does: the request is JSON on standard input, the answer JSON on standard output.
package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"

	"github.com/containernetworking/cni/libcni"
	"github.com/containernetworking/cni/pkg/types"
)

type request struct {
	Operation   string               `json:"operation"`
	List        json.RawMessage      `json:"list"`
	Path        []string             `json:"path"`
	Cache       string               `json:"cache"`
	ContainerID string               `json:"containerId"`
	Netns       string               `json:"netns"`
	Interface   string               `json:"interface"`
	Args        [][2]string          `json:"args"`
	GCArgs      *gcArgs              `json:"gcArgs"`
}

// gcArgs tells three lists of none apart: no arguments at all, a nil slice, and an empty one.
type gcArgs struct {
	Attachments []types.GCAttachment `json:"attachments"`
}

type answer struct {
	Result any          `json:"result,omitempty"`
	Error  *types.Error `json:"error,omitempty"`
}

func operate(asked request) (any, error) {
	list, err := libcni.ConfListFromBytes(asked.List)
	if err != nil {
		return nil, err
	}
	cni := libcni.NewCNIConfigWithCacheDir(asked.Path, asked.Cache, nil)
	runtime := &libcni.RuntimeConf{
		ContainerID: asked.ContainerID,
		NetNS:       asked.Netns,
		IfName:      asked.Interface,
		Args:        asked.Args,
	}
	ctx := context.Background()
	switch asked.Operation {
	case "add":
		return cni.AddNetworkList(ctx, list, runtime)
	case "check":
		return nil, cni.CheckNetworkList(ctx, list, runtime)
	case "del":
		return nil, cni.DelNetworkList(ctx, list, runtime)
	case "gc":
		if asked.GCArgs == nil {
			return nil, cni.GCNetworkList(ctx, list, nil)
		}
		args := &libcni.GCArgs{ValidAttachments: asked.GCArgs.Attachments}
		return nil, cni.GCNetworkList(ctx, list, args)
	case "status":
		return nil, cni.GetStatusNetworkList(ctx, list)
	case "validate":
		return cni.ValidateNetworkList(ctx, list)
	}
	return nil, fmt.Errorf("unknown operation %q", asked.Operation)
}

func main() {
	var asked request
	if err := json.NewDecoder(os.Stdin).Decode(&asked); err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(2)
	}
	result, err := operate(asked)
	answered := answer{Result: result}
	if err != nil {
		answered.Error = &types.Error{Msg: err.Error()}
		var failure *types.Error
		if errors.As(err, &failure) {
			answered.Error = failure
		}
	}
	if err := json.NewEncoder(os.Stdout).Encode(answered); err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(2)
	}
}
