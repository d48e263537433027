// Prints what a kustomization amounts to: `kustomize build FOLDER`.
package main

import (
	"fmt"
	"os"

	"sigs.k8s.io/kustomize/api/krusty"
	"sigs.k8s.io/kustomize/kyaml/filesys"
)

func main() {
	if len(os.Args) != 3 || os.Args[1] != "build" {
		fail("usage: kustomize build FOLDER")
	}
	kustomizer := krusty.MakeKustomizer(krusty.MakeDefaultOptions())
	resources, err := kustomizer.Run(filesys.MakeFsOnDisk(), os.Args[2])
	if err != nil {
		fail(err)
	}
	text, err := resources.AsYaml()
	if err != nil {
		fail(err)
	}
	os.Stdout.Write(text)
}

func fail(reason any) {
	fmt.Fprintln(os.Stderr, reason)
	os.Exit(1)
}
