// Command table prints what the conformance suite has measured: the reports that it has left
// in a folder, as the table of docs/brokers/README.md, and then with their figures.
//
//	go run ./internal/brokertest/table FOLDER
package main

import (
	"cmp"
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/postbus/postbus/internal/brokertest"
)

func main() {
	if len(os.Args) != 2 {
		fmt.Fprintln(os.Stderr, "usage: table FOLDER")
		os.Exit(2)
	}
	reports, err := read(os.Args[1])
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
	fmt.Println(brokertest.Figures(reports))
	for _, stock := range []bool{false, true} {
		var some []brokertest.Report
		for _, r := range reports {
			if strings.HasPrefix(r.Broker, "stock ") == stock {
				some = append(some, r)
			}
		}
		if len(some) > 0 {
			fmt.Println(brokertest.Table(some))
		}
	}
}

func read(dir string) (reports []brokertest.Report, err error) {
	files, err := filepath.Glob(filepath.Join(dir, "*.json"))
	if err != nil {
		return nil, err
	}
	if len(files) == 0 {
		return nil, fmt.Errorf("no report in %s: run the suite with POSTBUS_TEST_BROKERS set to this folder", dir)
	}
	for _, file := range files {
		content, err := os.ReadFile(file)
		if err != nil {
			return nil, err
		}
		var r brokertest.Report
		if err := json.Unmarshal(content, &r); err != nil {
			return nil, fmt.Errorf("read %s: %w", file, err)
		}
		reports = append(reports, r)
	}
	slices.SortFunc(reports, func(a, b brokertest.Report) int { return cmp.Compare(a.Broker, b.Broker) })
	return reports, nil
}
