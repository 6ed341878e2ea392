// Package contentstore is what there is of containerd in tests without one: its content store, which has labels.
package contentstore

import (
	"sync"
	"testing"

	"github.com/containerd/containerd/v2/core/content"
	"github.com/containerd/containerd/v2/plugins/content/local"
	"github.com/opencontainers/go-digest"
)

// New makes a content store in a folder, with the labels that its content had.
func New(t testing.TB, dir string, labels *Labels) content.Store {
	t.Helper()
	store, err := local.NewLabeledStore(dir, labels)
	if err != nil {
		t.Fatal(err)
	}
	return store
}

// Labels are what content is labelled with, which containerd keeps in its database.
type Labels struct{ all sync.Map }

// Get returns what content is labelled with.
func (l *Labels) Get(d digest.Digest) (map[string]string, error) {
	v, _ := l.all.Load(d)
	labels, _ := v.(map[string]string)
	return labels, nil
}

// Set labels content anew.
func (l *Labels) Set(d digest.Digest, labels map[string]string) error {
	l.all.Store(d, labels)
	return nil
}

// Update labels content anew.
func (l *Labels) Update(d digest.Digest, labels map[string]string) (map[string]string, error) {
	l.all.Store(d, labels)
	return labels, nil
}
