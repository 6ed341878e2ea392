package ducc

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"os"
	"strconv"
	"time"

	"github.com/google/uuid"

	"cvmfs-graphdriver/convert"
	"cvmfs-graphdriver/convert/wish"
)

// ConvertList converts a wish list and appends what happens to a file of notifications; with the name "", nobody wants
// to know. An error is also that wishes failed. The summary is nil if the list wasn't gone through.
func ConvertList(
	ctx context.Context, c *convert.Converter, list *wish.List, notifications string,
) (*convert.ListSummary, error) {
	n, err := openNotifier(notifications)
	if err != nil {
		return nil, err
	}
	show := c.Progress
	defer func() { c.Progress = show }()
	c.Progress = func(e convert.Event) {
		if show != nil {
			show(e)
		}
		n.event(e)
	}
	n.begin()
	s, err := c.ConvertList(ctx, list)
	n.end(err)
	if err = errors.Join(err, n.close()); err == nil {
		err = s.Err()
	}
	return s, err
}

// notifier appends what happens to a file for other programs: one JSON object a line, with the keys and actions of the
// DUCC tool, all values strings.
type notifier struct {
	file   *os.File // nil: nobody wants to know
	err    error    // the first that writing gave
	run    string   // id of the whole run
	began  time.Time
	layers map[string]string // ids of conversions under way, by digest
}

func openNotifier(file string) (*notifier, error) {
	n := &notifier{run: uuid.NewString(), began: time.Now(), layers: map[string]string{}}
	if file == "" {
		return n, nil
	}
	var err error
	n.file, err = os.OpenFile(file, os.O_WRONLY|os.O_APPEND|os.O_CREATE, 0o644)
	if err != nil {
		return nil, fmt.Errorf("notification file: %w", err)
	}
	return n, nil
}

// notificationTime is how times are written.
const notificationTime = "_2 Jan 2006 - 15:04:05.000"

func (n *notifier) write(action, id string, more map[string]string) {
	if n.file == nil {
		return
	}
	line := map[string]string{
		"time": time.Now().Format(notificationTime), "action": action, "id": id, "pid": strconv.Itoa(os.Getpid()),
	}
	maps.Copy(line, more)
	b, err := json.Marshal(line)
	if err == nil {
		_, err = n.file.Write(append(b, '\n')) // in one piece, so that several writers don't mix
	}
	if n.err == nil {
		n.err = err
	}
}

func seconds(d time.Duration) string { return fmt.Sprintf("%f", d.Seconds()) }

// outcome is how something ended.
func outcome(err error, more map[string]string) map[string]string {
	more["status"] = "ok"
	if err != nil {
		more["status"], more["error"] = "error", err.Error()
	}
	return more
}

// begin notes that a wish list is begun.
func (n *notifier) begin() { n.write("start_ducc", n.run, nil) }

// end notes how that ended.
func (n *notifier) end(err error) {
	n.write("end_ducc", n.run, outcome(err, map[string]string{"time_elapsed_s": seconds(time.Since(n.began))}))
}

// event notes conversions of images and layers.
func (n *notifier) event(e convert.Event) {
	if n.file == nil {
		return
	}
	about := map[string]string{
		"image": e.Image, "layer": e.Path, "layer_digest": e.Digest, "public_path": e.Path,
		"size_bytes": strconv.FormatInt(e.Total, 10),
	}
	switch e.Action {
	case convert.LayerStarted:
		n.layers[e.Digest] = uuid.NewString()
		n.write("start_layer_conversion", n.layers[e.Digest], about)
	case convert.LayerDone, convert.LayerFailed:
		about["time_elapsed_s"] = seconds(e.Elapsed)
		n.write("end_layer_conversion", n.layers[e.Digest], outcome(e.Err, about))
		delete(n.layers, e.Digest)
	case convert.ImageFailed:
		n.write("end_image_conversion", n.run, outcome(e.Err,
			map[string]string{"image": e.Image, "time_elapsed_s": seconds(e.Elapsed)}))
	case convert.ImageDone:
		n.write("end_image_conversion", n.run,
			outcome(nil, map[string]string{"image": e.Image, "time_elapsed_s": seconds(e.Elapsed)}))
	}
}

// close closes the file. Its error is the first one that writing gave, too.
func (n *notifier) close() error {
	if n.file == nil {
		return nil
	}
	err := n.err
	if closeErr := n.file.Close(); err == nil {
		err = closeErr
	}
	if err != nil {
		return fmt.Errorf("notification file: %w", err)
	}
	return nil
}
