package prometheus

import (
	"context"
	"encoding/json"
	"fmt"
	"net/http"
	"net/url"
	"regexp"
	"strconv"
	"time"
)

// Series is what a query gives over a time: seconds since 1970, and values.
type Series struct {
	Legend string
	Times  []float64
	Values []float64
}

// Range asks the server at a URL for what a target shows over a time.
func Range(ctx context.Context, server string, t Target, from, to time.Time, step time.Duration) ([]Series, error) {
	query := url.Values{
		"query": {t.Query("10s")}, "start": {from.Format(time.RFC3339)}, "end": {to.Format(time.RFC3339)},
		"step": {step.String()},
	}
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, server+"/api/v1/query_range?"+query.Encode(), http.NoBody)
	if err != nil {
		return nil, err
	}
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		return nil, err
	}
	defer resp.Body.Close()
	var answer struct {
		Status, Error string
		Data          struct {
			Result []struct {
				Metric map[string]string
				Values [][2]any
			}
		}
	}
	if err := json.NewDecoder(resp.Body).Decode(&answer); err != nil {
		return nil, err
	}
	if answer.Status != "success" {
		return nil, fmt.Errorf("query %s: %s", t.Expr, answer.Error)
	}
	var all []Series
	for _, r := range answer.Data.Result {
		s := Series{Legend: legend(t.LegendFormat, r.Metric)}
		for _, v := range r.Values {
			at, _ := v[0].(float64)
			text, _ := v[1].(string)
			value, err := strconv.ParseFloat(text, 64)
			if err != nil {
				return nil, fmt.Errorf("query %s: value %q", t.Expr, text)
			}
			s.Times, s.Values = append(s.Times, at), append(s.Values, value)
		}
		all = append(all, s)
	}
	return all, nil
}

var label = regexp.MustCompile(`\{\{(\w+)\}\}`)

// legend fills in labels as Grafana does.
func legend(format string, labels map[string]string) string {
	return label.ReplaceAllStringFunc(format, func(name string) string { return labels[name[2:len(name)-2]] })
}
