package control

import (
	"context"

	"cvmfs-graphdriver/driver/status"
)

// SnapshotterSocket is where the node of a snapshotter answers unless it is told otherwise.
const SnapshotterSocket = "/run/cvmfs-snapshotter/control.sock"

// Prefix is what the path of every command begins with.
const Prefix = "/CvmfsGraphDriver."

// A Question is named by its text, asked with a Q and answered with an A.
type Question[Q, A any] string

// A Task is named by its text, asked with a Q, tells a P from time to time, and ends with an A.
type Task[Q, P, A any] string

// None is the request of a command that needs nothing to be said, and the progress of a task that tells none.
type None struct{}

// The commands of a node.
const (
	// Status asks for the state of the node.
	Status Question[None, status.Node] = "Status"
	// Reload has the node read the host's CernVM-FS configuration again.
	Reload Task[None, None, status.Reload] = "Reload"
	// Names asks for the names that the engine has for composed images, which the node asks the engine for.
	Names Task[None, None, status.Names] = "Names"
)

// Node answers the commands.
type Node interface {
	Status() status.Node
	Reload(ctx context.Context) (status.Reload, error)
	Names(ctx context.Context) (status.Names, error)
	Cache
	Thinner
}

// register has a handler answer the commands with what a node says.
func (h *Handler) register(n Node) {
	answer(h, Status, func(None) (status.Node, error) { return n.Status(), nil })
	perform(h, Reload, func(ctx context.Context, _ None, _ func(None)) (status.Reload, error) { return n.Reload(ctx) })
	perform(h, Names, func(ctx context.Context, _ None, _ func(None)) (status.Names, error) { return n.Names(ctx) })
	h.registerCache(n)
	h.registerThin(n)
}
