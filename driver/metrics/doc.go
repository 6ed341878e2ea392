// Package metrics tells the state of a node to Prometheus, in its text format (version 0.0.4).
//
// Nothing is counted here: what happens is counted where it happens and reported as package status has it. A family is
// a metric with all its labels; Families lists them, and the documentation, the dashboard and the alert rules are held
// against that list. An Exporter answers scrapes at an address. Where it can't, containers start all the same: it says
// so and tries again.
//
// A scrape is a question, and has no effects: it reads what is counted, the records of layers and images, and of each
// image a sample of its objects.
//
// Labels have few values: repositories, hosts of servers, kinds of failures, and images by what they were converted
// from. Never is one an object, a path or a container.
package metrics
