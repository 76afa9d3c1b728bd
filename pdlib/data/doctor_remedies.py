"""What a finding is, and what may help against each refusal and note of the reader, told by the words that it uses.

A refusal or a note that is not listed gets a remedy of last resort; tests hold the words to really damaged files.
"""

from dataclasses import dataclass

ERROR, WARNING, NOTE = SEVERITIES = ("error", "warning", "note")  # refused by a run; probably wrong; worth knowing
AGAIN = "fetch or convert the file again: it is cut short or damaged"
HEADER = "correct the header (nibabel, or fslorient), or convert the image again from DICOM with dcm2niix"
ONTO_FLAIR = "take the one that the challenge has in pre/, or resample this onto the FLAIR (a mask: nearest neighbours)"
LOOK = "open the file in a viewer, and convert it again if it looks wrong there too"

REFUSALS = {
    "missing": "put the file there, or take the case's folder away",
    "under two names": "keep one of the two folders",
    "by observer": "keep one of the two files",
    "name is not UTF-8": "rename the folder",
    "DICOM": "convert the series to NIfTI with dcm2niix",
    "empty file": AGAIN,
    "gzip": AGAIN,
    "CRC": AGAIN,
    "data end early": AGAIN,
    "not a 3D volume": "extract one volume (nibabel: image.slicer[..., 0]), or convert again",
    "no voxels": AGAIN,
    "exceeds the limit": f"a wrong header, or an image too large for this project: {HEADER}",
    "voxel sizes": HEADER,
    "affine is singular": HEADER,
    "voxels begin at byte": HEADER,
    "not plain numbers": "write the image with a plain type of number (int16 or float32), not colour or complex",
    ".hdr and .img": "write the pair as one .nii.gz (nibabel.save)",
    "not a NIfTI": "export the image as NIfTI; DICOM is converted by dcm2niix",
    "not a readable NIfTI": HEADER,
    "shape": ONTO_FLAIR,
    "affine differs": ONTO_FLAIR,
    "NaN or Inf": "set these voxels to 0 where they lie outside the brain, or convert the image again",
    "no contrast": "export the image again: this one shows nothing",
    "same image as": "put the right T1 in its place: one image is stored twice",
    "labels other than": "write 0 for background, 1 for lesion, 2 for other pathology, and nothing else",
    "threshold it first": "threshold the mask, and write it as 0 and 1",
    "cannot tell the brain": "give the image a background of zeros, or leave it as the scanner made it",
    "empty brain": LOOK,
    "Permission denied": "give yourself the right to read it (chmod)",
    "memory": "close other programs, or read the case on a machine with more memory",
}


@dataclass(frozen=True)
class Finding:
    """One thing about one file: how bad, what, and what may help. case is "" for what concerns the folder."""

    case: str
    file: str
    severity: str  # error, warning or note
    what: str
    remedy: str


@dataclass(frozen=True)
class About:
    """What a note of the reader is about: a file of the case, how bad it is, what may help."""

    file: str
    severity: str
    remedy: str


EXCHANGE = "look at both: if they are exchanged, exchange the two files"
NOTES = {
    "outside the brain": About(
        "wmh", WARNING, "lay the mask over the FLAIR: it may be shifted, mirrored or another patient's"
    ),
    "look swapped": About("flair", WARNING, EXCHANGE),
    "same image": About("t1", WARNING, "look at both: one of them may be stored under the other's name too"),
    "is background and all else": About("flair", NOTE, "nothing, if the image was cut out and then shifted"),
    "of the volume": About("flair", WARNING, "look whether the image is a whole brain with some background around it"),
    "reaches the image's border": About("flair", WARNING, "look whether the image is cut off"),
    "low contrast in the T1": About("t1", WARNING, LOOK),
    "bright on the T1": About("t1", WARNING, "look whether it is a T1"),
    "bright on the FLAIR": About("flair", WARNING, "look whether it is a FLAIR"),
    "is negative in the FLAIR": About("flair", WARNING, "take the image from before it was shifted or z-scored"),
}
OTHER = About("flair", WARNING, LOOK)


def remedy_of(cause: str) -> str:
    """What may help against a refusal."""
    return next((remedy for words, remedy in REFUSALS.items() if words in cause), LOOK)


def about(note: str) -> About:
    """Which file a note is about, how bad it is, what may help."""
    return next((one for words, one in NOTES.items() if words in note), OTHER)
