"""What is missing in a cluster for Triptych to run there: all of it in one pass, by reading only.

Reviews of rights (SubjectAccessReview) are asked by POST and keep nothing. `faults.yaml` says what must be there, and
of each fault what is told and what to do; `checks` looks at the cluster and at what the manifests made, `needs` at what
the steps ask for. What could not be asked is a fault too.
"""
