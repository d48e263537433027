// Prints what a chart amounts to, or what is wrong with it: `helm template|lint CHART [VALUES]`.
package main

import (
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"strings"

	"helm.sh/helm/v3/pkg/chart/loader"
	"helm.sh/helm/v3/pkg/chartutil"
	"helm.sh/helm/v3/pkg/engine"
	"helm.sh/helm/v3/pkg/lint"
	"helm.sh/helm/v3/pkg/lint/support"
)

// What `helm template --namespace istio-system --kube-version` would be told.
var release = chartutil.ReleaseOptions{Name: "nodeagent", Namespace: "istio-system", IsInstall: true, Revision: 1}

func main() {
	if len(os.Args) < 3 || len(os.Args) > 4 {
		fail("usage: helm template|lint CHART [VALUES]")
	}
	values := map[string]any{}
	if len(os.Args) == 4 {
		read, err := chartutil.ReadValuesFile(os.Args[3])
		check(err)
		values = read
	}
	switch os.Args[1] {
	case "template":
		template(os.Args[2], values)
	case "lint":
		lintChart(os.Args[2], values)
	default:
		fail("usage: helm template|lint CHART [VALUES]")
	}
}

// All documents, by the name of the template.
func template(path string, values map[string]any) {
	chart, err := loader.Load(path)
	check(err)
	capabilities := chartutil.DefaultCapabilities.Copy()
	if version := os.Getenv("KUBE_VERSION"); version != "" {
		parsed, err := chartutil.ParseKubeVersion(version)
		check(err)
		capabilities.KubeVersion = *parsed
	}
	render, err := chartutil.ToRenderValues(chart, values, release, capabilities)
	check(err)
	rendered, err := engine.Render(chart, render)
	check(err)
	for name := range rendered {
		if filepath.Base(name) == "NOTES.txt" || strings.TrimSpace(rendered[name]) == "" {
			delete(rendered, name)
		}
	}
	check(json.NewEncoder(os.Stdout).Encode(rendered))
}

func lintChart(path string, values map[string]any) {
	linter := lint.All(path, values, release.Namespace, true)
	for _, message := range linter.Messages {
		if message.Severity >= support.WarningSev {
			fmt.Fprintln(os.Stderr, message)
		}
	}
	if linter.HighestSeverity >= support.WarningSev {
		os.Exit(1)
	}
}

func check(err error) {
	if err != nil {
		fail(err)
	}
}

func fail(reason any) {
	fmt.Fprintln(os.Stderr, reason)
	os.Exit(1)
}
