package main

import (
	"fmt"
	"io"
	"text/tabwriter"
)

// status prints one line per server. It takes no lock and changes nothing.
func status(p place, w io.Writer) error {
	st, err := p.loadState()
	if err != nil {
		return err
	}
	t := tabwriter.NewWriter(w, 0, 0, 2, ' ', 0)
	fmt.Fprintln(t, "SERVER\tFROM\tADDRESS\tANSWERS")
	for _, s := range servers {
		r, known := st.get(s.key)
		if !known {
			fmt.Fprintf(t, "%s\t-\t-\tnot started\n", s.title)
			continue
		}
		answer := "yes"
		if err := s.running(r); err != nil {
			answer = "no: " + err.Error()
		}
		fmt.Fprintf(t, "%s\t%s\t%s\t%s\n", s.title, r.From, withoutPassword(r.URL), answer)
	}
	return t.Flush()
}
