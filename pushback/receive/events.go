package receive

import (
	"encoding/json"
	"errors"
	"fmt"
	"net/url"
)

const maxEvent = 1 << 20 // bytes

// event tells that something has happened to an object.
type event struct{ bucket, key string }

// object is how all forms of events name an object.
type object struct {
	Bucket struct {
		Name string `json:"name"`
	} `json:"bucket"`
	Object struct {
		Key string `json:"key"`
	} `json:"object"`
}

// message has the fields of all forms of events.
type message struct {
	Records []struct { // MinIO, and Amazon S3 itself
		S3 object `json:"s3"`
	} `json:"Records"`
	Event      string  `json:"Event"`        // "s3:TestEvent": of Amazon S3, when events are set up
	DetailType string  `json:"detail-type"`  // EventBridge
	Detail     *object `json:"detail"`       // EventBridge
	Type       string  `json:"Type"`         // SNS
	Message    string  `json:"Message"`      // SNS: the event in it
	Subscribe  string  `json:"SubscribeURL"` // SNS
}

// parseEvents reads a request of a store that tells of objects: MinIO's form, which is Amazon S3's, also within a
// notification of SNS, and EventBridge's. A store's test has no events.
func parseEvents(b []byte) ([]event, error) {
	var m message
	if err := json.Unmarshal(b, &m); err != nil {
		return nil, fmt.Errorf("event: %w", err)
	}
	switch {
	case m.Type == "Notification":
		b = []byte(m.Message)
		if m = (message{}); json.Unmarshal(b, &m) != nil {
			return nil, errors.New("event: the message of the notification is no event")
		}
	case m.Type == "SubscriptionConfirmation":
		return nil, fmt.Errorf("event: a subscription is confirmed by a person, who opens %.1000q", m.Subscribe)
	}
	if m.Detail != nil && m.DetailType != "" {
		return []event{{m.Detail.Bucket.Name, m.Detail.Object.Key}}, nil
	}
	var all []event
	for _, r := range m.Records {
		key, err := url.QueryUnescape(r.S3.Object.Key)
		if err != nil {
			return nil, fmt.Errorf("event: key %.300q: %w", r.S3.Object.Key, err)
		}
		all = append(all, event{r.S3.Bucket.Name, key})
	}
	if len(all) == 0 && m.Event != "s3:TestEvent" {
		return nil, errors.New("event: it names no object")
	}
	return all, nil
}
