package engine

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"strings"
)

// Networks, by the numbers that Kubernetes' runtime interface has for them: the pod's own, and that of the machine.
const (
	podNetwork  = 0
	hostNetwork = 2
)

// Pod is a pod of one container.
type Pod struct {
	Name, Image string
	Users       int // of the host, whom its users are shifted by, in a user namespace; 0 for none
}

// namespaces are the options for the namespaces of a pod and its container.
func (p *Pod) namespaces() map[string]any {
	options := map[string]any{"network": hostNetwork}
	if p.Users > 0 {
		ids := []any{map[string]any{"host_id": p.Users, "container_id": 0, "length": 65536}}
		options["network"] = podNetwork // containerd 2.1 takes no other with a user namespace
		options["userns_options"] = map[string]any{"mode": 0, "uids": ids, "gids": ids}
	}
	return map[string]any{"namespace_options": options}
}

// RunInPod pulls the image of a pod and runs a command in its container, as a kubelet would. It returns the ids of
// both.
func (e *Engine) RunInPod(ctx context.Context, p Pod, command ...string) (pod, container string, err error) {
	logs, name, image := e.path("pods"), p.Name, p.Image
	podFile, err1 := e.describe(name+".pod.json", map[string]any{
		"metadata":      map[string]any{"name": name, "namespace": "tests", "uid": name},
		"log_directory": logs,
		"linux":         map[string]any{"cgroup_parent": "/" + e.parent, "security_context": p.namespaces()},
	})
	containerFile, err2 := e.describe(name+".container.json", map[string]any{
		"metadata": map[string]any{"name": name},
		"image":    map[string]any{"image": image},
		"command":  command,
		"log_path": name + ".log",
		"linux":    map[string]any{"security_context": p.namespaces()},
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
