package receive

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net/http"
	"os"
	"path/filepath"
	"strconv"
	"time"

	"golang.org/x/sys/unix"

	"cvmfs-graphdriver/internal/durable"
	"cvmfs-graphdriver/pushback/api"
)

const (
	uploadStall = time.Minute // without a byte coming
	takeOver    = time.Minute // since an upload's last byte, after which another node may send the same layer
	leastRate   = 16 << 10    // bytes a second, on an average of a part: whoever sends slower takes the place of others
)

// refusal answers a request that isn't met. after, if it isn't 0, says when to try again.
type refusal struct {
	code   int
	reason string
	after  time.Duration
}

func (r *refusal) write(w http.ResponseWriter, a *api.Answer) {
	if r.after > 0 {
		w.Header().Set("Retry-After", strconv.Itoa(int((r.after+time.Second-1)/time.Second)))
	}
	a.Reason = r.reason
	reply(w, r.code, a)
}

// offset tells how much of a layer is there, to who goes on with it.
func (s *Service) offset(w http.ResponseWriter, q *http.Request, name string) {
	digest := q.PathValue("digest")
	r, ok := s.book.get(digest)
	size := r.Size
	if ok && r.State == Sending && r.Node == name {
		size = s.have(digest)
	} else if !ok || r.State == Sending || r.State == Failed {
		w.WriteHeader(http.StatusNotFound)
		return
	}
	w.Header().Set(api.HeaderOffset, strconv.FormatInt(size, 10))
}

// have is how many bytes of an upload are there.
func (s *Service) have(digest string) int64 {
	info, err := os.Stat(s.book.archive(digest))
	if err != nil {
		return 0
	}
	return info.Size()
}

// part is what a request carries of an archive.
type part struct{ from, to, total int64 } // to is the offset behind the last byte

func partOf(q *http.Request) (part, error) {
	text := q.Header.Get("Content-Range")
	if text == "" {
		if q.ContentLength <= 0 {
			return part{}, errors.New("want a Content-Length, or a Content-Range: bytes FIRST-LAST/TOTAL")
		}
		return part{0, q.ContentLength, q.ContentLength}, nil
	}
	var p part
	var rest string
	n, _ := fmt.Sscanf(text, "bytes %d-%d/%d%s", &p.from, &p.to, &p.total, &rest) // what is missing is told by n
	if p.to++; n != 3 || p.from < 0 || p.to <= p.from || p.total < p.to {
		return part{}, fmt.Errorf("Content-Range %.100q: want bytes FIRST-LAST/TOTAL", text)
	}
	return p, nil
}

// upload takes a part of a layer.
func (s *Service) upload(w http.ResponseWriter, q *http.Request, name string) {
	digest := q.PathValue("digest")
	p, err := partOf(q)
	if err != nil {
		(&refusal{http.StatusBadRequest, err.Error(), 0}).write(w, s.answer(digest))
		return
	}
	ctx, cancel := context.WithTimeout(q.Context(), askedTime)
	defer cancel()
	if a := s.current(ctx, digest); a.Status == api.Publishing || a.Status == api.Done {
		reply(w, http.StatusAccepted, a)
		return
	}
	select {
	case s.uploads <- struct{}{}:
		defer func() { <-s.uploads }()
	default:
		(&refusal{http.StatusServiceUnavailable, "too many uploads at once", 5 * time.Second}).write(w, s.answer(digest))
		return
	}
	release, ok := s.book.claim(digest)
	if !ok {
		(&refusal{http.StatusConflict, "this layer is being worked on", 5 * time.Second}).write(w, s.answer(digest))
		return
	}
	refused := s.take(w, q, name, p)
	release()
	if refused != nil {
		refused.write(w, s.answer(digest))
		return
	}
	signal(s.wake)
	reply(w, http.StatusAccepted, s.answer(digest))
}

// take puts a part of a layer to what is there, and judges whether it may come.
func (s *Service) take(w http.ResponseWriter, q *http.Request, name string, p part) *refusal {
	digest := q.PathValue("digest")
	r, known := s.book.get(digest)
	switch {
	case known && (r.State == Published || r.State.Pending()):
		return nil // since it was claimed
	case known && r.State == Rejected:
		return &refusal{http.StatusForbidden, r.Reason, 0}
	case known && r.State == Sending && r.Node != name && !s.still(digest):
		return &refusal{http.StatusConflict, "another node is sending this layer", takeOver}
	}
	goesOn := known && r.State == Sending && r.Node == name && r.Size == p.total
	have := int64(0)
	if goesOn {
		have = s.have(digest)
	}
	if p.from != have {
		w.Header().Set(api.HeaderOffset, strconv.FormatInt(have, 10))
		return &refusal{http.StatusConflict, fmt.Sprintf("want the archive from byte %d on", have), 0}
	}
	if !goesOn {
		r = Record{
			Digest: digest, DiffID: q.Header.Get(api.HeaderDiffID), Size: p.total, Node: name,
			Image: bounded(q.Header.Get(api.HeaderImage)), Failed: r.Failed, State: Sending, Since: time.Now().UTC(),
		}
		if refused := s.start(r, q); refused != nil {
			return refused
		}
	}
	return s.receive(w, q, r, p)
}

// touched is when the last byte of an upload came.
func (s *Service) touched(digest string) time.Time {
	info, err := os.Stat(s.book.archive(digest))
	if err != nil {
		return time.Time{}
	}
	return info.ModTime()
}

// giveWay drops the oldest upload that a node has given up for another one of the same node, and reports whether there
// was one. The caller holds admission.
func (s *Service) giveWay(to *Record) bool {
	for _, r := range s.book.in(Sending) {
		if r.Node != to.Node || r.Digest == to.Digest || !s.still(r.Digest) {
			continue
		}
		release, ok := s.book.claim(r.Digest)
		if !ok {
			continue
		}
		err := s.book.drop(r.Digest)
		release()
		s.complain("dropping an upload", r.Digest, err)
		return err == nil
	}
	return false
}

// still reports whether nothing has come of an upload for so long that its node may have given it up. By a clock that
// was ahead it came later than now.
func (s *Service) still(digest string) bool {
	age := time.Since(s.touched(digest))
	return age >= takeOver || age < -takeOver
}

// start begins an upload, if its node may.
func (s *Service) start(r Record, q *http.Request) *refusal {
	if r.DiffID != "" && !api.ValidDigest(r.DiffID) {
		return &refusal{http.StatusBadRequest, api.HeaderDiffID + ": want 64 lower-case hex digits", 0}
	}
	if err := s.c.admit(&r); err != nil {
		return s.refuse(r, err, q.RemoteAddr)
	}
	s.admission.Lock()
	defer s.admission.Unlock()
	wait, why := s.room(&r)
	if full, reason := s.place(&r); full > 0 && reason == why && s.giveWay(&r) {
		wait, why = s.room(&r)
	}
	if wait > 0 {
		return &refusal{http.StatusTooManyRequests, why, wait}
	}
	if err := os.Truncate(s.book.archive(r.Digest), 0); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return s.unable(err)
	}
	if err := s.enter(DecidedReceived, &r, q.RemoteAddr); err != nil {
		return s.unable(err)
	}
	s.sent.add(r.Node, r.Size, r.Since)
	return nil
}

// mostRefusals is how many of a node's uploads that are refused within an hour have a line in the audit file each: it
// could fill the disk with them. Beyond, they are only counted.
const mostRefusals = 100

// refuse refuses a layer that its node may not send.
func (s *Service) refuse(r Record, why error, remote string) *refusal {
	s.admission.Lock()
	defer s.admission.Unlock()
	if s.refused.within(time.Hour, r.Node, r.Since) >= mostRefusals {
		s.audit.skip(DecidedRefused)
	} else {
		s.refused.add(r.Node, 0, r.Since)
		r.Reason = why.Error()
		if err := s.decide(s.line(DecidedRefused, &r, remote)); err != nil {
			return s.unable(err)
		}
	}
	return &refusal{http.StatusForbidden, why.Error(), 0}
}

// unable answers what isn't the node's fault.
func (s *Service) unable(err error) *refusal {
	s.log.Error("an upload can't be taken", "err", err)
	if errors.Is(err, unix.ENOSPC) || errors.Is(err, unix.EDQUOT) {
		return &refusal{http.StatusInsufficientStorage, "the service's disk is full", time.Minute}
	}
	return &refusal{http.StatusInternalServerError, "the service can't keep the layer: its log says why", time.Minute}
}

// receive appends a part to an upload. What came of one that breaks off is kept.
func (s *Service) receive(w http.ResponseWriter, q *http.Request, r Record, p part) *refusal {
	f, err := os.OpenFile(s.book.archive(r.Digest), os.O_WRONLY|os.O_APPEND|os.O_CREATE, 0o600)
	if err != nil {
		return s.unable(err)
	}
	if p.from == 0 {
		if err := durable.SyncDir(filepath.Dir(f.Name())); err != nil {
			return s.unable(errors.Join(err, f.Close()))
		}
	}
	body := &steady{
		in: io.LimitReader(q.Body, p.to-p.from), control: http.NewResponseController(w),
		end: time.Now().Add(uploadStall + time.Duration((p.to-p.from)/leastRate)*time.Second),
	}
	n, err := io.Copy(f, body)
	err = errors.Join(err, f.Sync(), f.Close())
	http.NewResponseController(w).SetWriteDeadline(time.Now().Add(answerTimeout)) // it knows deadlines
	if err != nil && body.err == nil {
		return s.unable(err)
	}
	if n < p.to-p.from {
		return &refusal{http.StatusBadRequest, "the archive broke off", 0}
	}
	if p.to < p.total {
		w.Header().Set(api.HeaderOffset, strconv.FormatInt(p.to, 10))
		return nil
	}
	s.reached("whole")
	r.State = Arrived
	if err := s.book.put(r); err != nil {
		return s.unable(err)
	}
	return nil
}

// complete takes an upload for arrived of which all is there: the service ended before it could say so.
func (s *Service) complete(digest string) {
	release, ok := s.book.claim(digest)
	if !ok {
		return
	}
	defer release()
	if r, ok := s.book.get(digest); ok && r.State == Sending && s.have(digest) == r.Size {
		r.State = Arrived
		s.complain("recording a layer", digest, s.book.put(r))
	}
}

// steady is a body whose time is extended as long as something comes, up to an end.
type steady struct {
	in      io.Reader
	control *http.ResponseController
	end     time.Time
	err     error
}

func (s *steady) Read(p []byte) (int, error) {
	deadline := time.Now().Add(uploadStall)
	if s.end.Before(deadline) {
		deadline = s.end
	}
	s.control.SetReadDeadline(deadline) // it knows deadlines
	n, err := s.in.Read(p)
	if err != nil && !errors.Is(err, io.EOF) {
		s.err = err
	}
	return n, err
}
