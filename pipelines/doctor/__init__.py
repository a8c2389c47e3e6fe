"""What is missing in a cluster for Triptych to run there: all of it in one pass, by reading only.

Reviews of rights (SubjectAccessReview) are asked by POST and change nothing. Each check yields its faults; what could
not be asked is a fault too. `platform` looks at the cluster and Kubeflow, `installation` at what the manifests made,
`rights` at who may do what.
"""
