package brokertest

import (
	"strings"
	"testing"
)

func TestTableInTheDocumentIsHeldToWhatIsDeclared(t *testing.T) {
	ours, stock := Report{Broker: "Ours"}, Report{Broker: "stock"}
	everything, little := Everything(), Capabilities{Payloads: Yes, Headers: NotAssured}
	for _, row := range rows() {
		ours.Rows = append(ours.Rows, Row{Says: row.says, Declared: row.declared(&everything).String()})
		stock.Rows = append(stock.Rows, Row{Says: row.says, Declared: row.declared(&little).String()})
	}
	text := "# Brokers\n\n" + Table([]Report{ours, stock}) + "\nText | with a bar.\n"
	for _, c := range []struct {
		broker string
		is     Capabilities
		faults int
		says   string
	}{
		{"Ours", everything, 0, ""},
		{"stock", little, 0, ""},
		{"stock", everything, len(rows()) - 1, `says "no", not "yes"`},
		{"Ours", little, len(rows()) - 1, `says "yes", not "no`},
		{"nobody", everything, 1, `no table has a column "nobody"`},
	} {
		faults := faultsOfTable(text, c.broker, c.is)
		if len(faults) != c.faults || c.faults > 0 && !strings.Contains(strings.Join(faults, "\n"), c.says) {
			t.Errorf("%s: %d faults instead of %d: %q", c.broker, len(faults), c.faults, faults)
		}
	}
}

func TestReportsArePrinted(t *testing.T) {
	r := Report{Broker: "Ours", Rows: []Row{{Case: "order", Says: cases[8].says, Declared: "no", Figures: "3 messages"}}}
	if text := Figures([]Report{r}); !strings.Contains(text, "order") || !strings.Contains(text, "no") || !strings.Contains(text, "3 messages") {
		t.Errorf("the figures are %q", text)
	}
	if text := Table([]Report{r}); !strings.Contains(text, "| "+cases[8].says+" | no |") || !strings.Contains(text, "| "+cases[0].says+" | not measured |") {
		t.Errorf("the table is %q", text)
	}
}
