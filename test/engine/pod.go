package engine

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"strings"
)

// hostNetwork is the number by which Kubernetes' runtime interface names the network of the machine.
const hostNetwork = 2

// RunInPod pulls an image and runs a command in a container of it, in a pod with that name, as a kubelet would. It
// returns the ids of both.
func (e *Engine) RunInPod(ctx context.Context, name, image string, command ...string,
) (pod, container string, err error) {
	logs := e.path("pods")
	podFile, err1 := e.describe(name+".pod.json", map[string]any{
		"metadata":      map[string]any{"name": name, "namespace": "tests", "uid": name},
		"log_directory": logs,
		"linux": map[string]any{
			"cgroup_parent": "/" + e.parent,
			"security_context": map[string]any{
				"namespace_options": map[string]any{"network": hostNetwork},
			},
		},
	})
	containerFile, err2 := e.describe(name+".container.json", map[string]any{
		"metadata": map[string]any{"name": name},
		"image":    map[string]any{"image": image},
		"command":  command,
		"log_path": name + ".log",
		"linux":    map[string]any{},
	})
	if err := errors.Join(err1, err2, os.MkdirAll(logs, 0o755)); err != nil {
		return "", "", fmt.Errorf("describe a pod: %w", err)
	}
	if _, err := e.Crictl(ctx, "pull", image); err != nil {
		return "", "", err
	}
	if pod, err = e.crictlID(ctx, "runp", podFile); err != nil {
		return pod, "", err
	}
	if container, err = e.crictlID(ctx, "create", pod, containerFile, podFile); err != nil {
		return pod, container, err
	}
	_, err = e.Crictl(ctx, "start", container)
	return pod, container, err
}

// crictlID runs the client for a command that answers with an id.
func (e *Engine) crictlID(ctx context.Context, args ...string) (string, error) {
	out, err := e.Crictl(ctx, args...)
	return strings.TrimSpace(out), err
}

// describe writes a description into a file of the engine's folder.
func (e *Engine) describe(name string, what map[string]any) (string, error) {
	text, err := json.Marshal(what)
	if err != nil {
		return "", err
	}
	return e.path(name), os.WriteFile(e.path(name), text, 0o644)
}
