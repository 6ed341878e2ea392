package layers

import (
	"errors"
	"fmt"
	"slices"

	"github.com/moby/sys/user"

	"cvmfs-graphdriver/thin"
)

// Stack is what shows a layer: the folders of an overlay, and the composed image that is to be one of them.
type Stack struct {
	ID      string
	Content string   // folder of what the layer itself adds to its parent
	Lower   []Folder // ordinary layers above the topmost thin one, topmost first
	Thin    string   // id of the topmost thin layer, which shows what is below Lower; "" where none is thin
	Image   string   // key of its composed image; "" where none was made yet
	Data    []string // folders of the layers below Thin that the composed image has files of
	// of a read-write layer, the folders of what is changed and of overlayfs; "" of a read-only stack
	Upper, Work string
	// how the owners of what is below Upper are to be mapped; empty for not at all. It is for who shows the stack to
	// set.
	IDs user.IdentityMapping
}

// Folder is a layer and the folder of its content.
type Folder struct{ ID, Content string }

// IsOverlay reports whether it takes an overlay to show the layer: else Content is all there is to it.
func (s *Stack) IsOverlay() bool { return s.Upper != "" && (len(s.Lower) > 0 || s.Thin != "") }

// Use settles what a layer is, which is about to be used, and returns its stack: of a read-write one its own folders
// and what shows its parent, of a read-only one its content.
func (s *Store) Use(id string) (Stack, error) {
	l, err := s.settled(id)
	if err != nil {
		return Stack{}, err
	}
	stack, err := s.stack(id, l)
	if err != nil {
		return Stack{}, fmt.Errorf("mount layer %s: %w", id, err)
	}
	return stack, nil
}

// UseReadOnly is Use for who wants to see a layer and its chain without writing to it.
func (s *Store) UseReadOnly(id string) (Stack, error) {
	if err := s.settle(id); err != nil {
		return Stack{}, err
	}
	stack := Stack{ID: id, Content: s.diff(id)}
	err := s.addLower(&stack, id)
	return stack, errors.Join(err, s.addData(&stack))
}

// Describe returns the folders and the image of a layer for people, and changes nothing. Every layer has an upper
// folder there, and below it those of its parent's stack, as engines' own drivers tell it; Data is left out.
func (s *Store) Describe(id string) (Stack, error) {
	l, err := s.load(id)
	if err != nil {
		return Stack{}, err
	}
	stack := Stack{ID: id, Content: s.diff(id), Upper: s.diff(id), Work: s.dir(id, "work")}
	err = s.addLower(&stack, l.Parent)
	if l.Thin {
		stack.Thin, stack.Image = id, l.Image
	}
	return stack, err
}

// stack returns the stack of a layer on top of its parent's.
func (s *Store) stack(id string, l *layer) (Stack, error) {
	stack := Stack{ID: id, Content: s.diff(id)}
	if !l.Writable {
		return stack, nil
	}
	stack.Upper, stack.Work = s.diff(id), s.dir(id, "work")
	err := s.addLower(&stack, l.Parent)
	return stack, errors.Join(err, s.addData(&stack))
}

// addLower adds a layer and its ancestors down to the topmost thin one.
func (s *Store) addLower(stack *Stack, id string) error {
	return s.descend(id, func(id string, l *layer) bool {
		if l.Thin {
			stack.Thin, stack.Image = id, l.Image
			return false
		}
		stack.Lower = append(stack.Lower, Folder{ID: id, Content: s.diff(id)})
		return true
	})
}

// addData adds the ordinary layers below the topmost thin one.
func (s *Store) addData(stack *Stack) error {
	return s.descend(stack.Thin, func(id string, l *layer) bool {
		if !l.Thin {
			stack.Data = append(stack.Data, s.dir(id))
		}
		return true
	})
}

// Link is a layer of a chain: a thin one, or an ordinary one.
type Link struct {
	Thin *thin.Descriptor // nil for an ordinary layer
	ID   string           // ordinary: its id, as redirects spell it
	Diff string           // ordinary: folder of its content, absolute
}

// Chain returns a layer and its ancestors, bottom to top, as they are composed, and the key of the composed image that
// the layer names. Of "" the chain is empty.
func (s *Store) Chain(id string) (chain []Link, image string, err error) {
	var failed error
	top := id
	err = s.descend(id, func(id string, l *layer) bool {
		if id == top {
			image = l.Image
		}
		link := Link{ID: id, Diff: s.diff(id)}
		if l.Thin {
			link = Link{}
			if link.Thin, failed = readDescriptor(s.diff(id)); failed != nil {
				failed = fmt.Errorf("layer %s: %w", id, failed)
			}
		}
		chain = append(chain, link)
		return failed == nil
	})
	slices.Reverse(chain)
	return chain, image, errors.Join(err, failed)
}

// Ancestor is a layer, or one that it stands on.
type Ancestor struct {
	ID, Parent string
	Thin       *thin.Descriptor // nil for an ordinary layer
}

// Ancestry returns a layer and its ancestors, bottom to top.
func (s *Store) Ancestry(id string) (list []Ancestor, err error) {
	var failed error
	err = s.descend(id, func(id string, l *layer) bool {
		a := Ancestor{ID: id, Parent: l.Parent}
		if l.Thin {
			if a.Thin, failed = readDescriptor(s.diff(id)); failed != nil {
				failed = fmt.Errorf("layer %s: %w", id, failed)
			}
		}
		list = append(list, a)
		return failed == nil
	})
	slices.Reverse(list)
	return list, errors.Join(err, failed)
}

// descend visits a layer and its ancestors until visit says false.
func (s *Store) descend(id string, visit func(id string, l *layer) bool) error {
	for range maxDepth {
		if id == "" {
			return nil
		}
		l, err := s.load(id)
		if err != nil {
			return err
		}
		if !visit(id, l) {
			return nil
		}
		id = l.Parent
	}
	return fmt.Errorf("layer %s: more than %d ancestors", id, maxDepth)
}
