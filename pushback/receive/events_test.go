package receive

import (
	"fmt"
	"net/http"
	"slices"
	"strconv"
	"testing"

	"cvmfs-graphdriver/cvmfs/publish/s3/s3test"
	"cvmfs-graphdriver/pushback/api"
)

// As the stores send them, but for what nobody reads.
const (
	eventMinIO = `{"EventName":"s3:ObjectCreated:Put","Key":"layers/in/%[1]s","Records":[{"eventVersion":"2.0",` +
		`"eventSource":"minio:s3","eventName":"s3:ObjectCreated:Put","s3":{"s3SchemaVersion":"1.0","bucket":` +
		`{"name":"layers","arn":"arn:aws:s3:::layers"},"object":{"key":"in%%2F%[1]s","size":7}}}]}`
	eventAWS = `{"Records":[{"eventVersion":"2.1","eventSource":"aws:s3","eventName":"ObjectCreated:Put","s3":` +
		`{"bucket":{"name":"layers"},"object":{"key":"in/%s","size":7,"eTag":"x"}}},{"s3":{"bucket":` +
		`{"name":"layers"},"object":{"key":"a+b"}}}]}`
	eventBridge = `{"version":"0","detail-type":"Object Created","source":"aws.s3","detail":{"bucket":` +
		`{"name":"layers"},"object":{"key":"in/%s","size":7}}}`
	eventTest = `{"Service":"Amazon S3","Event":"s3:TestEvent","Time":"2014-10-13T15:57:02.089Z","Bucket":"layers"}`
)

func notification(text string) string {
	return `{"Type":"Notification","MessageId":"1","Message":` + strconv.Quote(text) + `}`
}

func TestEventsOfAllFormsAreUnderstood(t *testing.T) {
	for name, c := range map[string]struct {
		text string
		want []event
	}{
		"MinIO":       {fmt.Sprintf(eventMinIO, "x"), []event{{"layers", "in/x"}}},
		"Amazon":      {fmt.Sprintf(eventAWS, "x"), []event{{"layers", "in/x"}, {"layers", "a b"}}},
		"SNS":         {notification(fmt.Sprintf(eventAWS, "x")), []event{{"layers", "in/x"}, {"layers", "a b"}}},
		"EventBridge": {fmt.Sprintf(eventBridge, "x"), []event{{"layers", "in/x"}}},
		"test":        {eventTest, nil},
		"test by SNS": {notification(eventTest), nil},
	} {
		got, err := parseEvents([]byte(c.text))
		if err != nil || !slices.Equal(got, c.want) {
			t.Errorf("%s: %v, %v", name, got, err)
		}
	}
	for _, text := range []string{
		"", "[]", "{}", `{"Records":[]}`, `{"Type":"Notification","Message":"x"}`,
		`{"Type":"SubscriptionConfirmation","SubscribeURL":"https://sns"}`,
		`{"Records":[{"s3":{"object":{"key":"%zz"}}}]}`,
	} {
		if got, err := parseEvents([]byte(text)); err == nil {
			t.Errorf("%s: %v", text, got)
		}
	}
}

func FuzzEvents(f *testing.F) {
	for _, text := range []string{eventMinIO, eventAWS, eventBridge, eventTest, notification(eventAWS)} {
		f.Add(text)
	}
	f.Fuzz(func(t *testing.T, text string) {
		if all, err := parseEvents([]byte(text)); err != nil && len(all) > 0 {
			t.Errorf("%v and %v", all, err)
		}
	})
}

func TestEventsMakeTheServiceLook(t *testing.T) {
	for name, form := range map[string]string{"MinIO": eventMinIO, "Amazon": eventAWS, "EventBridge": eventBridge} {
		t.Run(name, func(t *testing.T) {
			s := newSite(t, func(c *Config) {
				c.Nodes = []Node{{Name: "n1"}}
				c.Events = "n2"
			})
			l := newLayer(t, "file")
			text := []byte(fmt.Sprintf(form, l.digest))
			if code, _, _ := s.request(http.MethodPost, "/", "", text); code != http.StatusUnauthorized {
				t.Errorf("without a token: %d", code)
			}
			s.tellsOf(text) // nothing is there: it may be a lie
			s.is(l, api.Unknown, "")
			s.puts("", l, api.MetaNode, "n1")
			s.tellsOf(text)
			s.round(t.Context())
			s.is(l, api.Done, "")
		})
	}
}

// tellsOf sends an event and follows it.
func (s *site) tellsOf(text []byte) {
	s.t.Helper()
	if code, answer, _ := s.request(http.MethodPost, "/events", token2, text); code != http.StatusOK {
		s.t.Errorf("%d %s", code, answer)
	}
	hints := s.takeHints()
	if len(hints) != 1 {
		s.t.Errorf("hints: %v", hints)
	}
	if _, err := s.follow(s.t.Context(), hints); err != nil {
		s.t.Error(err)
	}
}

func TestAStoreThatFailsIsAskedAgain(t *testing.T) {
	s := newSite(t, nil)
	l, other := newLayer(t, "file"), newLayer(t, "other")
	s.puts("", l)
	s.puts("", other)
	s.store.Cut = true
	s.turn()
	s.is(l, api.Publishing, "")
	s.has()
	s.store.Cut = false
	for _, r := range s.book.all() {
		r.Next = r.Since
		if err := s.book.put(r); err != nil {
			t.Fatal(err)
		}
	}
	s.turn()
	s.is(l, api.Done, "")
	s.has(l, other)
	gone := newLayer(t, "gone")
	s.puts("", gone)
	if err := s.poll(t.Context()); err != nil {
		t.Fatal(err)
	}
	delete(s.store.Objects, "in/"+gone.digest)
	s.round(t.Context())
	s.is(gone, api.Failed, "gone from the bucket")
}

// The repository may be in the same store.
func TestRepositoriesInBucketsAreTargets(t *testing.T) {
	t.Setenv("AWS_ACCESS_KEY_ID", s3test.AccessKey)
	t.Setenv("AWS_SECRET_ACCESS_KEY", s3test.SecretKey)
	s := newSite(t, func(c *Config) { hosted(t, c) })
	l := newLayer(t, "file")
	s.puts("", l)
	s.turn()
	s.is(l, api.Done, "")
	s.has(l)
	if _, left := s.store.Objects["in/"+l.digest]; left {
		t.Error("the layer is left in the bucket")
	}
}
